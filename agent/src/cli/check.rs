//! `dropwire check`: would the agent run well with this config? Nothing is changed by asking.

mod folders;
mod network;
mod programs;

use std::path::Path;

use serde_json::json;

use super::output::{remark, say, say_json};
use crate::{
    commands,
    config::{self, Config, paths::Paths},
    control::{Client, api::StatusReport},
    daemon,
    error::{Exit, Fatal, shown},
    id,
    identity::Identity,
    owner::Me,
};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Also print the settings that are in effect, defaults included
    #[arg(long)]
    settings: bool,
    /// As one line of JSON
    #[arg(long)]
    json: bool,
}

/// What was found, and a verdict; the first trouble is the command's error. With `--settings` these go to stdout, what
/// was found to stderr.
pub(super) fn run(args: &Args, paths: &Paths) -> Result<(), Fatal> {
    let config = super::load(paths)?;
    let findings = check(&config, paths)?;
    let settings = config::effective(&config);
    if args.json {
        say_json(&report(&config, paths, &findings, &settings))?;
    } else {
        for line in findings.iter().map(Finding::text).chain([verdict(&findings)]) {
            match args.settings {
                true => remark(line),
                false => say(line)?,
            }
        }
        if args.settings {
            say(settings.trim_end())?;
        }
    }
    let trouble = findings.into_iter().find_map(|finding| match finding.told {
        Assessment::Trouble(fatal) => Some(fatal),
        Assessment::Good(_) | Assessment::Note(_) => None,
    });
    trouble.map_or(Ok(()), Err)
}

/// What was found of one thing.
struct Finding {
    subject: String,
    told: Assessment,
}

enum Assessment {
    Good(String),
    /// Worth knowing, and nothing to be put right in the config.
    Note(String),
    Trouble(Fatal),
}

impl From<Result<String, Fatal>> for Assessment {
    fn from(result: Result<String, Fatal>) -> Self {
        match result {
            Ok(good) => Self::Good(good),
            Err(fatal) => Self::Trouble(fatal),
        }
    }
}

impl Finding {
    fn new(subject: impl Into<String>, told: impl Into<Assessment>) -> Self {
        Self {
            subject: subject.into(),
            told: told.into(),
        }
    }

    fn text(&self) -> String {
        let subject = &self.subject;
        match &self.told {
            Assessment::Good(text) => format!("ok       {subject}: {text}"),
            Assessment::Note(text) => format!("note     {subject}: {text}"),
            Assessment::Trouble(fatal) => {
                let help = fatal.hint.iter().map(|hint| format!("\n         help: {hint}"));
                format!("trouble  {subject}: {fatal}{}", help.collect::<String>())
            }
        }
    }

    fn is_trouble(&self) -> bool {
        matches!(self.told, Assessment::Trouble(_))
    }
}

fn verdict(findings: &[Finding]) -> String {
    match findings.iter().filter(|finding| finding.is_trouble()).count() {
        0 => "verdict  all is well".into(),
        1 => "verdict  1 problem".into(),
        n => format!("verdict  {n} problems"),
    }
}

fn check(config: &Config, paths: &Paths) -> Result<Vec<Finding>, Fatal> {
    let in_effect = match commands::setting_trouble(config, paths) {
        None => Ok(format!("{}, of `{}`", shown(&paths.config), config.name)),
        Some(fatal) => Err(fatal),
    };
    let mut findings = vec![Finding::new("config", in_effect)];
    if paths.state_dir.exists() {
        let private = daemon::check_private(&paths.state_dir).and_then(|()| {
            folders::writable(&paths.state_dir).map_err(|error| {
                let what = format_args!("the agent cannot write in {}", shown(&paths.state_dir));
                Fatal::io(what, &error).hint("let the user that runs the agent write there")
            })
        });
        let private = private.map(|()| "is closed to others".into());
        findings.push(Finding::new(
            format!("state folder {}", shown(&paths.state_dir)),
            private,
        ));
    }
    let identity = match Identity::load(&paths.state_dir) {
        Ok(identity) => identity,
        Err(fatal) => {
            findings.push(Finding::new("identity", Err(fatal)));
            None
        }
    };
    findings.extend(own_id(config, paths, identity.as_ref()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fatal::io("cannot start the runtime", &error))?;
    let agent = runtime.block_on(Client::new(&paths.control).status()).ok();
    findings.extend(
        agent
            .as_ref()
            .map(|agent| running(agent, paths, identity.as_ref())),
    );
    // Another one's answers say nothing of ours.
    let agent =
        agent.filter(|agent| Some(&agent.id) == identity.as_ref().map(|own| id::format(own.id())).as_ref());
    let me = identity.as_ref().map(|own| Me {
        id: own.id(),
        name: config.name.clone(),
    });
    // Without an identity no folder is anybody else's yet.
    let held = |path: &Path| commands::folder_trouble(config, paths, me.as_ref()?, path);
    findings.extend(folders::check(config, agent.as_ref(), &held));
    findings.extend(programs::check(config));
    findings.extend(runtime.block_on(network::check(config, identity, agent)));
    Ok(findings)
}

/// None: something is wrong with the key, and was told.
fn own_id(config: &Config, paths: &Paths, identity: Option<&Identity>) -> Option<Finding> {
    let found = match identity {
        Some(identity) => config
            .check_own_id(identity.id())
            .map(|()| id::format(identity.id())),
        None if Identity::load(&paths.state_dir).is_err() => return None,
        None => Ok(format!(
            "none yet in {}: `dropwire init` makes it",
            shown(&paths.state_dir)
        )),
    };
    Some(Finding::new("identity", found))
}

/// The agent that answers at our control socket.
fn running(agent: &StatusReport, paths: &Paths, identity: Option<&Identity>) -> Finding {
    let told = match identity {
        _ if agent.starting => {
            let waits = agent.problems.first();
            let text = waits.map_or("its job list", |waits| &waits.text);
            let fatal = Fatal::new(
                Exit::Disk,
                format_args!("process {} is starting and waits: {text}", agent.pid),
            );
            Err(match waits {
                Some(waits) => fatal.hint(&waits.hint),
                None => fatal,
            })
        }
        Some(own) if id::format(own.id()) == agent.id => match &agent.config_error {
            None => Ok(format!("process {} runs with this config", agent.pid)),
            Some(error) => Err(Fatal::new(
                Exit::Config,
                format_args!("process {} still runs with an earlier config: {error}", agent.pid),
            )),
        },
        _ => Err(Fatal::new(
            Exit::CannotCreate,
            format_args!(
                "another agent answers at {}, with the id {}",
                shown(&paths.control),
                agent.id
            ),
        )
        .hint("give this one a socket of its own: `control` in the config")),
    };
    Finding::new("agent", told)
}

fn report(config: &Config, paths: &Paths, findings: &[Finding], settings: &str) -> serde_json::Value {
    let settings: Option<toml::Table> = toml::from_str(settings).ok();
    let list: Vec<_> = findings
        .iter()
        .map(|finding| {
            let (detail, hint) = match &finding.told {
                Assessment::Good(text) | Assessment::Note(text) => (text.clone(), None),
                Assessment::Trouble(fatal) => (fatal.to_string(), fatal.hint.clone()),
            };
            let note = matches!(finding.told, Assessment::Note(_));
            json!({
                "subject": finding.subject, "ok": !finding.is_trouble(), "note": note, "detail": detail, "hint": hint,
            })
        })
        .collect();
    json!({
        "schema": 1,
        "name": config.name,
        "config": paths.config.to_string_lossy(),
        "ok": !findings.iter().any(Finding::is_trouble),
        "findings": list,
        "settings": settings,
    })
}
