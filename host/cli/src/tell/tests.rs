//! Channels against servers and programs that write down what they hear.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::*;
use crate::command::status::tests::machines;

/// What was asked of a server: the request line, the authorization, and the body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Heard {
    line: String,
    authorization: String,
    body: String,
}

/// A web server that answers with `status` and keeps what it hears.
async fn web(status: Arc<Mutex<u16>>) -> (String, Arc<Mutex<Vec<Heard>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
    let kept = heard.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (kept, status) = (kept.clone(), status.clone());
            let answer = service_fn(move |request: Request<Incoming>| {
                let (kept, status) = (kept.clone(), status.clone());
                async move {
                    let header = request.headers().get("authorization");
                    let mut heard = Heard {
                        line: format!("{} {}", request.method(), request.uri()),
                        authorization: header
                            .map(|value| value.to_str().unwrap().to_owned())
                            .unwrap_or_default(),
                        body: String::new(),
                    };
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    heard.body = String::from_utf8(body.to_vec()).unwrap();
                    kept.lock().unwrap().push(heard);
                    let mut response = Response::new(Full::new(Bytes::new()));
                    *response.status_mut() = hyper::StatusCode::from_u16(*status.lock().unwrap()).unwrap();
                    Ok::<_, Infallible>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    (format!("http://{address}"), heard)
}

/// A mail server for one mail; gives what was said to it.
async fn mail_server() -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let mut heard = Vec::new();
        write.write_all(b"220 test\r\n").await.unwrap();
        let mut in_data = false;
        while let Some(line) = lines.next_line().await.unwrap() {
            let answer = match (in_data, line.split(' ').next().unwrap_or_default()) {
                (true, ".") => {
                    in_data = false;
                    "250 kept\r\n"
                }
                (true, _) => "",
                (false, "DATA") => {
                    in_data = true;
                    "354 go on\r\n"
                }
                (false, "QUIT") => "221 bye\r\n",
                (false, _) => "250 fine\r\n",
            };
            heard.push(line.clone());
            write.write_all(answer.as_bytes()).await.unwrap();
            if line == "QUIT" || line == "." {
                break;
            }
        }
        heard
    });
    (format!("smtp://{address}"), served)
}

fn config(folder: &Path, channels: &str) -> Config {
    let text = format!(
        "[coffre]\nstate = \"{0}/state\"\nrun = \"{0}/run\"\n[vault.main]\nurl = \"vault\"\nencryption = \"none\"\n{channels}",
        folder.display()
    );
    Config::parse(&folder.join("coffre.toml"), &text).unwrap_or_else(|error| panic!("{error}"))
}

fn one(outcomes: Vec<Outcome>) -> anyhow::Result<usize> {
    assert_eq!(outcomes.len(), 1);
    outcomes.into_iter().next().unwrap().1
}

#[tokio::test]
async fn a_webhook_hears_what_is_new_once_and_what_failed_to_reach_it_later() {
    let folder = tempfile::tempdir().unwrap();
    let status = Arc::new(Mutex::new(503));
    let (url, heard) = web(status.clone()).await;
    let token = folder.path().join("token");
    fs::write(&token, "s3cret\n").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let channel = format!("[notify.chat]\nkind = \"webhook\"\nurl = \"{url}/hook\"\ntoken = {{ file = \"token\" }}\n");
    let config = config(folder.path(), &channel);
    let book = Book::open(&State::new(&config.coffre.state)).unwrap();
    let mut teller = Teller::new().unwrap();

    let error = one(teller.tell(&config, &book, &machines()).await).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("`chat`") && text.contains("503"), "{text}");
    assert!(!text.contains("/hook") && !text.contains("s3cret"), "{text}");
    // It is left alone for a while.
    assert!(teller.tell(&config, &book, &machines()).await.is_empty());

    *status.lock().unwrap() = 200;
    let mut teller = Teller::new().unwrap();
    assert_eq!(one(teller.tell(&config, &book, &machines()).await).unwrap(), 4);
    assert_eq!(
        one(teller.tell(&config, &book, &machines()).await).unwrap(),
        0,
        "nobody is told twice"
    );
    let heard = heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 2);
    assert_eq!(
        (heard[1].line.as_str(), heard[1].authorization.as_str()),
        ("POST /hook", "Bearer s3cret")
    );
    let body: serde_json::Value = serde_json::from_str(&heard[1].body).unwrap();
    let topics: Vec<&str> = body["news"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["topic"].as_str().unwrap())
        .collect();
    assert_eq!(topics, ["not-safe", "failed", "failed", "downgraded"]);
    assert!(
        body["subject"]
            .as_str()
            .unwrap()
            .contains("2 machines: 2 failed, 1 downgraded, 1 not-safe")
    );
}

#[tokio::test]
async fn a_mail_says_it_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let (server, served) = mail_server().await;
    let channel = format!(
        "[notify.ops]\nkind = \"email\"\nserver = \"{server}\"\nfrom = \"Coffre <coffre@example.org>\"\n\
         to = [\"ops@example.org\", \"boss@example.org\"]\non = [\"not-safe\"]\n"
    );
    let config = config(folder.path(), &channel);
    let book = Book::open(&State::new(&config.coffre.state)).unwrap();
    let told = one(Teller::new().unwrap().tell(&config, &book, &machines()).await).unwrap();
    assert_eq!(told, 1);
    let heard = served.await.unwrap();
    for line in [
        "MAIL FROM:<coffre@example.org>",
        "RCPT TO:<ops@example.org>",
        "RCPT TO:<boss@example.org>",
    ] {
        assert!(heard.iter().any(|heard| heard.starts_with(line)), "{line}: {heard:?}");
    }
    assert!(
        heard
            .iter()
            .any(|line| line.starts_with("Subject:") && line.contains("db01: not-safe")),
        "{heard:?}"
    );
    assert!(
        heard
            .iter()
            .any(|line| line.contains("the newest good point is 4 days old")),
        "{heard:?}"
    );
}

#[tokio::test]
async fn a_command_reads_it_and_its_failure_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("page");
    let heard = folder.path().join("heard");
    let write = |body: &str| {
        fs::write(&script, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    };
    let channel = format!(
        "[notify.pager]\nkind = \"command\"\ncommand = [\"{}\", \"now\"]\n",
        script.display()
    );
    let config = config(folder.path(), &channel);
    let book = Book::open(&State::new(&config.coffre.state)).unwrap();
    write("echo no line >&2; exit 3");
    let error = one(Teller::new().unwrap().tell(&config, &book, &machines()).await).unwrap_err();
    assert!(format!("{error:#}").ends_with("exit status: 3: no line"), "{error:#}");

    write(&format!(
        "echo \"$1 $COFFRE_SUBJECT\" > {0}; cat >> {0}",
        heard.display()
    ));
    assert_eq!(
        one(Teller::new().unwrap().tell(&config, &book, &machines()).await).unwrap(),
        4
    );
    let heard = fs::read_to_string(heard).unwrap();
    let (first, body) = heard.split_once('\n').unwrap();
    assert!(
        first.starts_with("now [coffre ") && first.contains("2 machines"),
        "{first}"
    );
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(body).unwrap()["news"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
}

#[tokio::test]
async fn a_ping_goes_out_again_and_again_and_hears_no_news() {
    let folder = tempfile::tempdir().unwrap();
    let (url, heard) = web(Arc::new(Mutex::new(200))).await;
    let config = Arc::new(config(
        folder.path(),
        &format!("[notify.alive]\nkind = \"ping\"\nurl = \"{url}/3f1c\"\nevery = \"1s\"\n"),
    ));
    let telling = Telling::start(config.clone()).unwrap();
    let started = Instant::now();
    while heard.lock().unwrap().len() < 3 {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{:?}",
            heard.lock().unwrap()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(telling);
    assert!(
        started.elapsed() > Duration::from_millis(1500),
        "no more often than asked"
    );
    let wanted = Heard {
        line: "GET /3f1c".to_owned(),
        ..Heard::default()
    };
    assert!(heard.lock().unwrap().iter().all(|heard| *heard == wanted));
    let book = Book::open(&State::new(&config.coffre.state)).unwrap();
    assert!(
        Teller::new()
            .unwrap()
            .tell(&config, &book, &machines())
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn metrics_are_served_on_loopback_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let listening = |address| {
        let lines = format!("[machine.web01]\nprovider = \"image\"\n[metrics]\nlisten = \"{address}\"\n");
        Arc::new(config(folder.path(), &lines))
    };
    let (first, address) = (free(), free());
    let telling = Telling::start(listening(first)).unwrap();
    let client = reqwest::Client::new();
    let ask = async |address| {
        let started = Instant::now();
        loop {
            match client.get(format!("http://{address}/metrics")).send().await {
                Ok(answer) => break answer,
                Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(ask(first).await.status(), 200);
    // The configuration that is read later says another address.
    telling.reload(listening(address));
    let answer = ask(address).await;
    let before = client.get(format!("http://{first}/metrics")).send().await;
    assert!(before.is_err(), "nobody is there any more");
    assert_eq!(answer.status(), 200);
    assert!(
        answer.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    let text = answer.text().await.unwrap();
    assert!(text.contains("coffre_machine_level{machine=\"web01\"} 3"), "{text}");
    let elsewhere = client.get(format!("http://{address}/")).send().await.unwrap();
    assert_eq!(elsewhere.status(), 404);
    let posted = client.post(format!("http://{address}/metrics")).send().await.unwrap();
    assert_eq!(posted.status(), 405);
}
