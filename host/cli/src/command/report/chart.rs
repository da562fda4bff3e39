//! Charts over time, as pictures that scale: bars and a line.

use jiff::Timestamp;
use maud::{Markup, html};

/// In units of the picture; text stands outside of it, so that it does not shrink with it.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 90.0;
/// Bars never touch, and never become a wall.
const WIDEST: f64 = 10.0;
const THINNEST: f64 = 1.0;

/// What one point has to say: when, two values of which the second is a part of the first or stands beside it, and the words
/// for both.
pub struct Sample {
    pub at: Timestamp,
    pub one: u64,
    pub two: u64,
    pub said: String,
}

fn across(samples: &[Sample]) -> impl Fn(Timestamp) -> f64 + use<> {
    let first = samples.first().map_or(0, |sample| sample.at.as_second());
    let last = samples.last().map_or(1, |sample| sample.at.as_second());
    let wide = (last - first).max(1) as f64;
    move |at| WIDEST / 2.0 + (at.as_second() - first) as f64 / wide * (WIDTH - WIDEST)
}

fn highest(samples: &[Sample]) -> f64 {
    samples
        .iter()
        .map(|sample| sample.one.max(sample.two))
        .max()
        .unwrap_or(0)
        .max(1) as f64
}

fn picture(label: &str, inner: &Markup) -> Markup {
    html! {
        svg.chart viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(label) {
            (inner)
            line.axis x1="0" x2=(WIDTH) y1=(HEIGHT - 0.5) y2=(HEIGHT - 0.5) {}
        }
    }
}

/// Two bars per sample, the second before the first.
pub fn bars(label: &str, samples: &[Sample]) -> Markup {
    let (x, top) = (across(samples), highest(samples));
    let wide = (WIDTH / samples.len().max(1) as f64 * 0.7).clamp(THINNEST, WIDEST);
    let tall = |value: u64| {
        let tall = value as f64 / top * (HEIGHT - 2.0);
        // What is there is seen, however little.
        if value > 0 { tall.max(1.0) } else { 0.0 }
    };
    let bar = |class: &str, sample: &Sample, value: u64| {
        let (tall, left) = (tall(value), x(sample.at) - wide / 2.0);
        html! {
            rect class=(class) x=(format!("{left:.1}")) y=(format!("{:.1}", HEIGHT - 1.0 - tall)) width=(format!("{wide:.1}"))
                height=(format!("{tall:.1}")) { title { (sample.said) } }
        }
    };
    let inner = html! {
        @for sample in samples {
            (bar("one", sample, sample.one))
            (bar("two", sample, sample.two))
        }
    };
    picture(label, &inner)
}

/// The first value as a line that keeps its height from one sample to the next.
pub fn line(label: &str, samples: &[Sample]) -> Markup {
    let (x, top) = (across(samples), highest(samples));
    let mut path = String::new();
    for sample in samples {
        let y = HEIGHT - 1.0 - sample.one as f64 / top * (HEIGHT - 4.0);
        if path.is_empty() {
            path.push_str(&format!("M0 {y:.1}"));
        }
        path.push_str(&format!("H{:.1}V{y:.1}", x(sample.at)));
    }
    path.push_str(&format!("H{WIDTH}"));
    picture(label, &html! { path.line d=(path) {} })
}
