//! What is told, as JSON for programs and as text for people.

use coffre_engine::news::{News, Topic};
use jiff::Timestamp;
use serde::Serialize;

use crate::output::count;

/// More lines than anybody reads; the JSON has all.
const LINES_AT_MOST: usize = 50;

/// One message with all that is new to a channel.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    pub host: String,
    pub at: Timestamp,
    pub coffre: &'static str,
    /// In one line.
    pub subject: String,
    /// For people; chats that take webhooks show it.
    pub text: String,
    pub news: Vec<News>,
    pub test: bool,
}

impl Message {
    pub fn of(host: &str, news: Vec<News>) -> Self {
        let subject = format!("[coffre {host}] {}", said(&news));
        let mut text = String::new();
        for one in news.iter().take(LINES_AT_MOST) {
            text.push_str(&format!("{}: {}: {}\n", one.machine, one.topic.as_str(), one.text));
            if let Some(hint) = &one.hint {
                text.push_str(&format!("  hint: {hint}\n"));
            }
        }
        if news.len() > LINES_AT_MOST {
            text.push_str(&format!(
                "and {} more; `coffre status` shows all\n",
                news.len() - LINES_AT_MOST
            ));
        }
        Self::new(host, subject, text, news)
    }

    pub fn test(host: &str) -> Self {
        let subject = format!("[coffre {host}] a test: this channel works");
        let text = "Nothing has happened. Somebody wanted to know whether this channel works.\n".to_owned();
        Self {
            test: true,
            ..Self::new(host, subject, text, Vec::new())
        }
    }

    fn new(host: &str, subject: String, text: String, news: Vec<News>) -> Self {
        Self {
            host: host.to_owned(),
            at: Timestamp::now(),
            coffre: env!("CARGO_PKG_VERSION"),
            subject,
            text,
            news,
            test: false,
        }
    }
}

/// `web01: failed`, or `3 machines: 2 failed, 1 recovered`.
fn said(news: &[News]) -> String {
    if let [one] = news {
        return format!("{}: {}", one.machine, one.topic.as_str());
    }
    let mut machines: Vec<&str> = news.iter().map(|one| one.machine.as_str()).collect();
    machines.sort_unstable();
    machines.dedup();
    let parts: Vec<String> = (Topic::ALL.into_iter())
        .map(|topic| (topic, news.iter().filter(|one| one.topic == topic).count()))
        .filter(|(_, number)| *number > 0)
        .map(|(topic, number)| format!("{number} {}", topic.as_str()))
        .collect();
    let who = match machines[..] {
        [one] => one.to_owned(),
        _ => count(machines.len(), "machine"),
    };
    format!("{who}: {}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use coffre_engine::status::Level;

    use super::*;

    fn one(machine: &str, topic: Topic) -> News {
        News {
            machine: machine.to_owned(),
            topic,
            level: Level::Warning,
            text: "the last backup failed: the store is full".to_owned(),
            hint: Some("make room".to_owned()),
        }
    }

    #[test]
    fn a_message_says_in_its_subject_what_it_is_about() {
        let failed = || one("web01", Topic::Failed);
        let subject = |news| Message::of("backup1", news).subject;
        assert_eq!(subject(vec![failed()]), "[coffre backup1] web01: failed");
        assert_eq!(
            subject(vec![failed(), one("web01", Topic::NotSafe)]),
            "[coffre backup1] web01: 1 failed, 1 not-safe"
        );
        let several = vec![failed(), one("db01", Topic::Failed), one("mail01", Topic::Recovered)];
        assert_eq!(subject(several), "[coffre backup1] 3 machines: 2 failed, 1 recovered");
    }

    #[test]
    fn a_message_has_an_end() {
        let message = Message::of("backup1", vec![one("web01", Topic::Failed); 1000]);
        assert_eq!(message.text.lines().count(), 2 * LINES_AT_MOST + 1);
        assert_eq!(message.news.len(), 1000);
        insta::assert_snapshot!(Message::of("backup1", vec![one("web01", Topic::Failed)]).text, @r"
        web01: failed: the last backup failed: the store is full
          hint: make room
        ");
    }
}
