//! A small HTTP server on a loopback address, with one page.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use coffre_engine::config::Config;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// As OpenMetrics 1.0 names it; Prometheus takes it as it is.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Who connects says what it wants within this time, or goes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Visitors at once; more wait. Each visit looks at all machines.
const AT_ONCE: usize = 4;

/// Answers `GET /metrics` until it is dropped. `config` is asked anew at each visit.
pub async fn serve(
    address: SocketAddr,
    config: impl Fn() -> Arc<Config> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen at {address} for those who want metrics"))?;
    let config = Arc::new(config);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let place = places.clone().acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // It is out of descriptors, or the visitor is gone: neither is the end.
            Err(error) => {
                tracing::warn!("a visitor of the metrics was not let in: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let config = config.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| answer(request, config()));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!("a visitor of the metrics went away: {error}");
            }
        });
    }
}

async fn answer(request: Request<Incoming>, config: Arc<Config>) -> Result<Response<Full<Bytes>>, Infallible> {
    let plain = |status, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n".to_owned()));
    }
    if request.method() != Method::GET {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are read\n".to_owned()));
    }
    Ok(match super::page(config).await {
        Ok(text) => {
            let mut response = plain(StatusCode::OK, text);
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
            response
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
    })
}
