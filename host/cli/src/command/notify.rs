//! `coffre notify`: tells the channels what is new, once; or tries them.

use std::sync::Arc;

use coffre_engine::config::NotifyWay;
use serde::Serialize;

use crate::args::{Global, NotifyArgs};
use crate::exit::{Complaint, Exit};
use crate::output::{Output, count};
use crate::report::Report;
use crate::tell::{self, Outcome, Teller};
use crate::{screen, wire};

#[derive(Serialize)]
struct Document {
    channels: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    channel: String,
    /// With --test: 0.
    news: usize,
    error: Option<Report>,
}

pub async fn run(args: &NotifyArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let mut config = wire::config(global)?;
    if config.notify.is_empty() {
        let hint = "add a [notify.NAME] table; `coffre config example` shows some";
        return Err(Complaint::config("the configuration has no channels to notify", hint).into());
    }
    if let Some(name) = &args.channel {
        let only = config.channel(name)?.name.clone();
        config.notify.retain(|name, _| *name == only);
    }
    let mut teller = Teller::new()?;
    let outcomes: Vec<Outcome> = if args.test {
        let mut outcomes = Vec::new();
        for channel in config.notify.values() {
            outcomes.push((channel.name.clone(), teller.test(channel).await.map(|()| 0)));
        }
        outcomes
    } else {
        if let Some(NotifyWay::Ping { .. }) = args
            .channel
            .as_ref()
            .and_then(|name| config.notify.get(name))
            .map(|one| &one.way)
        {
            let hint = "`coffre run` pings it while it is alive; --test pings it once";
            return Err(Complaint::usage("a ping is told no news", hint).into());
        }
        let config = Arc::new(config);
        let (book, machines) = tell::look(config.clone()).await?;
        teller.tell(&config, &book, &machines).await
    };
    let entries: Vec<Entry> = outcomes
        .into_iter()
        .map(|outcome| entry(outcome, args.test, output))
        .collect::<Result<_, _>>()?;
    let failed = entries
        .iter()
        .filter_map(|entry| entry.error.as_ref())
        .collect::<Vec<_>>();
    let exit = match failed[..] {
        [] => Exit::Done,
        _ if failed.len() < entries.len() => Exit::SomeFailed,
        _ => Exit::Failed,
    };
    output.document(&Document { channels: entries })?;
    Ok(exit)
}

fn entry((channel, outcome): Outcome, test: bool, output: &Output) -> anyhow::Result<Entry> {
    let (news, error) = match outcome {
        Ok(news) => {
            match news {
                _ if test => output.line(format!("{channel}: works"))?,
                0 => output.line(format!("{channel}: nothing new"))?,
                news => output.line(format!("{channel}: told {}", count(news, "piece") + " of news"))?,
            }
            (news, None)
        }
        Err(error) => {
            let report = Report::new(&error);
            screen::above(report.render(output.colour()).as_bytes());
            (0, Some(report))
        }
    };
    Ok(Entry { channel, news, error })
}
