//! The works: what is dropped, when the clock starts and stops, and which figures come of it.
//!
//! The end is always the same: the name is in the inbox and its bytes are on disk. Whoever does not sync by itself gets
//! one `syncfs` of the destination added.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    arrivals::Arrivals,
    contestants::{Contestant, PATIENCE, Session, Site},
    failed,
    meter::Meter,
    process::Usage,
    sources::{Sources, link, same, sync},
    statistics::quantile,
    wide::Wide,
    work::Work,
};

/// How much of everything.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of a large file.
    pub large: u64,
    /// Small files.
    pub small: usize,
    /// Files of `latency`, unless they take longer than `latency_time`; five at least.
    pub latency: usize,
    /// See above.
    pub latency_time: Duration,
    /// How long `idle` measures.
    pub idle: Duration,
    /// Bytes of the large file of `wide`.
    pub wide_large: u64,
    /// Its small files.
    pub wide_small: usize,
    /// Measured rounds.
    pub runs: usize,
    /// Whether one more comes before them that is not counted, and free memory is taken before each.
    pub warm: bool,
}

/// What one run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// In the order of [`Work::figures`].
    pub figures: Vec<f64>,
    /// What sender and receiver spent on it.
    pub used: [Usage; 2],
}

/// One contestant at one work.
pub struct Stage<'a> {
    /// Who.
    pub contestant: &'a dyn Contestant,
    /// How much.
    pub plan: &'a Plan,
    /// What is sent.
    pub sources: &'a Sources,
    /// A folder that is there and empty, on the disk that is measured.
    pub root: &'a Path,
    /// Whether the bytes that arrived are compared; names and sizes are in any case.
    pub check: bool,
}

impl Stage<'_> {
    /// Sets up, does `work` and takes down again.
    pub fn run(&self, work: Work) -> io::Result<Run> {
        let plain = Site::new(self.root.join("site"));
        match work {
            Work::Large => self.large(&plain),
            Work::Small => self.small(&plain),
            Work::Latency => self.session(&plain, |session| self.latency(&plain, session)),
            Work::Beside => self.beside(&plain),
            Work::Resume => self.resume(),
            Work::Idle => self.idle(Site { keep: true, ..plain }),
            Work::Wide => self.wide(),
        }
    }

    fn large(&self, site: &Site) -> io::Result<Run> {
        let source = self.sources.large(self.plan.large)?;
        self.session(site, |session| {
            let taken = self.deliver(site, session, &source)?;
            Ok(vec![self.plan.large as f64 / 1e6 / taken.as_secs_f64()])
        })
    }

    fn small(&self, site: &Site) -> io::Result<Run> {
        let source = self.sources.small(self.plan.small)?;
        self.session(site, |session| {
            let taken = self.deliver(site, session, &source)?;
            Ok(vec![self.plan.small as f64 / taken.as_secs_f64()])
        })
    }

    fn latency(&self, site: &Site, session: &mut dyn Session) -> io::Result<Vec<f64>> {
        let mut arrivals = Arrivals::watch(&site.inbox())?;
        let (start, mut taken) = (Instant::now(), Vec::new());
        while taken.len() < self.plan.latency && (taken.len() < 5 || start.elapsed() < self.plan.latency_time)
        {
            taken.push(one_small(site, session, &mut arrivals, taken.len())?);
            thread::sleep(PAUSE); // idle means that what follows an arrival is over, too
        }
        medians(&taken)
    }

    fn beside(&self, site: &Site) -> io::Result<Run> {
        let source = self.sources.large(self.plan.large)?;
        self.session(site, |session| {
            let mut arrivals = Arrivals::watch(&site.inbox())?;
            let staged = stage(site, &source)?;
            fs::rename(staged, site.outbox().join(DROP))?;
            let (start, mut taken) = (Instant::now(), Vec::new());
            while !arrivals.has(DROP)? {
                taken.push(one_small(site, session, &mut arrivals, taken.len())?);
                if start.elapsed() > PATIENCE {
                    return Err(failed("the large file never came"));
                }
            }
            self.compare(site, &source, DROP)?;
            medians(&taken)
        })
    }

    fn resume(&self) -> io::Result<Run> {
        let source = self.sources.large(self.plan.large)?;
        let whole = {
            let meter = Meter::start()?;
            let mut whole = Duration::ZERO;
            let site = Site {
                meter: Some(&meter),
                ..Site::new(self.root.join("whole"))
            };
            self.session(&site, |session| {
                whole = self.deliver(&site, session, &source)?;
                Ok(Vec::new())
            })?;
            fs::remove_dir_all(&site.root)?;
            whole
        };
        let meter = Meter::start()?;
        let site = Site {
            meter: Some(&meter),
            ..Site::new(self.root.join("cut"))
        };
        self.session(&site, |session| {
            let before = meter.passed();
            meter.cut_after(self.plan.large / 2);
            let begun = self.deliver(&site, session, &source);
            if !meter.was_cut() {
                return Err(failed("the line was not cut"));
            }
            // An agent comes back by itself; who is called has failed, and is called again.
            match begun {
                Err(_) if session.push(DROP).transpose()?.is_some() => self.durable(&site, session)?,
                begun => drop(begun?),
            }
            let came = Instant::now();
            let rest = came - meter.connected().unwrap_or(came);
            self.compare(&site, &source, DROP)?;
            let bytes = meter.passed() - before;
            Ok(vec![
                bytes as f64 / self.plan.large as f64,
                rest.as_secs_f64() / whole.as_secs_f64(),
            ])
        })
    }

    fn idle(&self, site: Site) -> io::Result<Run> {
        let source = self.sources.small(self.plan.small)?;
        self.session(&site, |session| {
            self.deliver(&site, session, &source)?;
            thread::sleep(self.plan.idle.min(Duration::from_secs(15))); // what follows a delivery is not idleness
            let before: f64 = session.cpu()?.iter().sum();
            thread::sleep(self.plan.idle);
            let spent = session.cpu()?.iter().sum::<f64>() - before;
            Ok(vec![spent * 60.0 / self.plan.idle.as_secs_f64()])
        })
    }

    fn wide(&self) -> io::Result<Run> {
        let wide = Wide::lay()?;
        let sources = [
            self.sources.large(self.plan.wide_large)?,
            self.sources.small(self.plan.wide_small)?,
        ];
        let mut both: Option<Run> = None;
        for (source, name) in sources.iter().zip(["large", "small"]) {
            let site = Site {
                wide: Some(&wide),
                ..Site::new(self.root.join(name))
            };
            let run = self.session(&site, |session| {
                Ok(vec![self.deliver(&site, session, source)?.as_secs_f64()])
            })?;
            both = Some(match both {
                None => run,
                Some(first) => first.and(run),
            });
        }
        both.ok_or_else(|| failed("no work"))
    }

    /// Sets up the contestant, lets `work` happen, and sees what was spent on it.
    fn session(
        &self,
        site: &Site,
        work: impl FnOnce(&mut dyn Session) -> io::Result<Vec<f64>>,
    ) -> io::Result<Run> {
        if self.plan.warm {
            self.sources.fill_memory()?;
        }
        site.prepare()?;
        let mut session = self.contestant.begin(site)?;
        let before = session.cpu()?;
        let figures = work(&mut *session)?;
        let mut used = session.end()?;
        for (used, before) in used.iter_mut().zip(before) {
            used.cpu -= before;
        }
        Ok(Run { figures, used })
    }

    /// Drops `source`, a file or a folder of files; the time until all of it is in the inbox and durable.
    fn deliver(&self, site: &Site, session: &mut dyn Session, source: &Path) -> io::Result<Duration> {
        let mut arrivals = Arrivals::watch(&site.inbox())?;
        let staged = stage(site, source)?;
        let files = if source.is_dir() {
            fs::read_dir(source)?.count()
        } else {
            0
        };
        let start = Instant::now();
        fs::rename(staged, site.outbox().join(DROP))?;
        match session.push(DROP) {
            Some(ended) => ended?,
            None => {
                let deadline = start + PATIENCE;
                arrivals.wait_for(DROP, deadline)?;
                if source.is_dir() {
                    Arrivals::watch(&site.inbox().join(DROP))?.wait_for_count(files, deadline)?;
                }
            }
        }
        self.durable(site, session)?;
        let taken = start.elapsed();
        self.compare(site, source, DROP)?;
        Ok(taken)
    }

    fn durable(&self, site: &Site, session: &dyn Session) -> io::Result<()> {
        if session.syncs() {
            Ok(())
        } else {
            sync(&site.inbox())
        }
    }

    fn compare(&self, site: &Site, source: &Path, name: &str) -> io::Result<()> {
        match same(source, &site.inbox().join(name), self.check)? {
            true => Ok(()),
            false => Err(failed("what arrived is not what was sent")),
        }
    }
}

impl Run {
    /// Two parts of one work.
    fn and(mut self, other: Self) -> Self {
        self.figures.extend(other.figures);
        self.used = [self.used[0].with(other.used[0]), self.used[1].with(other.used[1])];
        self
    }
}

/// Between two files of `latency`.
const PAUSE: Duration = Duration::from_millis(20);

/// What is dropped bears this name, be it a file or a folder.
const DROP: &str = "drop";

/// `source` beside the outbox, ready to be renamed into it, and on disk.
fn stage(site: &Site, source: &Path) -> io::Result<std::path::PathBuf> {
    let staged = site.root.join("sender/staged");
    link(source, &staged)?;
    Ok(staged)
}

/// Writes 1 KiB into the outbox, closes it, and waits until it has arrived.
fn one_small(
    site: &Site,
    session: &mut dyn Session,
    arrivals: &mut Arrivals,
    n: usize,
) -> io::Result<Duration> {
    let name = format!("note-{n}");
    let mut file = File::create_new(site.outbox().join(&name))?;
    file.write_all(&[7; 1024])?;
    let start = Instant::now();
    drop(file);
    match session.push(&name) {
        Some(ended) => ended?,
        None => arrivals.wait_for(&name, start + PATIENCE)?,
    }
    Ok(start.elapsed())
}

/// Median and 99th percentile in milliseconds.
fn medians(taken: &[Duration]) -> io::Result<Vec<f64>> {
    let taken: Vec<f64> = taken.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    let both = [0.5, 0.99].map(|share| quantile(&taken, share));
    let both: Option<Vec<f64>> = both.into_iter().collect();
    both.ok_or_else(|| failed("nothing was measured"))
}
