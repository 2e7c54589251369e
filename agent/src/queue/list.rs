//! Looking jobs up and listing them: read from connections of their own, so that a long listing stops no commit.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use dropwire_protocol::{AgentId, RemotePath, TransferId};
use rusqlite::{Connection, OptionalExtension, Result, named_params, params};

use super::{
    Counts, Filter, ItemId, Job, JobRow, JobState, Page, PeerCounts, Queue,
    job::{JOB_COLUMNS, JOB_TABLES, job_of, path_bytes},
};
use crate::{db::DbError, fs::version::OutboxId};

impl Queue {
    /// The job that has this id now.
    pub async fn get(&self, id: TransferId) -> Result<Option<Job>, DbError> {
        self.read(move |db| {
            db.query_row(
                &format!("SELECT {JOB_COLUMNS} FROM {JOB_TABLES} WHERE j.transfer = ?"),
                [id.0],
                |row| Ok(job_of(row)?.job),
            )
            .optional()
        })
        .await
    }

    /// The job that has, or once had, this id; its `id` is the one asked for.
    pub async fn by_any_id(&self, id: TransferId) -> Result<Option<Job>, DbError> {
        self.read(move |db| {
            let sql = format!(
                "SELECT {JOB_COLUMNS} FROM {JOB_TABLES} WHERE j.id = coalesce(
                     (SELECT id FROM jobs WHERE transfer = ?1), (SELECT job FROM former WHERE transfer = ?1))"
            );
            db.query_row(&sql, [id.0], |row| {
                Ok(Job {
                    id,
                    ..job_of(row)?.job
                })
            })
            .optional()
        })
        .await
    }

    /// Where in its outbox the file lay whose name in `leaving` this is ([`super::DueDisposal::name`]). Blocks for the
    /// job list.
    pub fn path_of(&self, leaving: &str) -> Result<Option<RemotePath>, DbError> {
        self.db.read_blocking(|db| {
            db.query_row(
                "SELECT d.path FROM jobs j JOIN drops d ON d.id = j.drop_id WHERE j.transfer = unhex(?)",
                [leaving],
                |row| row.get::<_, Vec<u8>>(0),
            )
            .optional()
            .map(|path| RemotePath::parse(&path?).ok())
        })
    }

    /// All outboxes that are known, and whether some file of each is still to be sent or lies there.
    pub async fn outboxes(&self) -> Result<HashMap<OutboxId, bool>, DbError> {
        self.read(|db| {
            db.prepare(OUTBOXES)?
                .query_map([], |row| Ok((OutboxId(row.get(0)?), row.get(1)?)))?
                .collect()
        })
        .await
    }

    /// Does every peer have it, and has it yet to leave its outbox?
    pub async fn is_leaving(&self, item: ItemId) -> Result<bool, DbError> {
        self.read(move |db| {
            db.prepare("SELECT 1 FROM drops WHERE id = ? AND state = 2")?
                .exists([item.0])
        })
        .await
    }

    /// The encoded receipt for this job, if one came.
    pub async fn receipt(&self, id: TransferId) -> Result<Option<Vec<u8>>, DbError> {
        self.read(move |db| {
            db.query_row("SELECT receipt FROM jobs WHERE transfer = ?", [id.0], |row| {
                row.get(0)
            })
            .optional()
            .map(Option::flatten)
        })
        .await
    }

    /// The present ids of jobs whose id, present or former, begins with these hex digits; at most two, for that is
    /// ambiguous enough.
    pub async fn by_prefix(&self, hex: String) -> Result<Vec<TransferId>, DbError> {
        let Some((low, high)) = prefix_range(&hex) else {
            return Ok(Vec::new());
        };
        self.read(move |db| {
            let sql = "SELECT transfer FROM jobs WHERE transfer BETWEEN ?1 AND ?2
                       UNION SELECT j.transfer FROM former f JOIN jobs j ON j.id = f.job
                             WHERE f.transfer BETWEEN ?1 AND ?2
                       LIMIT 2";
            ids(db, sql, params![low, high])
        })
        .await
    }

    /// The jobs of a file, newest first, by the absolute path a user knows it by; at most 1,000.
    pub async fn by_path(&self, path: &Path) -> Result<Vec<TransferId>, DbError> {
        let path = path.to_owned();
        self.read(move |db| {
            let mut ids_found = ids(
                db,
                "SELECT j.transfer FROM drops d JOIN jobs j ON j.drop_id = d.id WHERE d.origin = ?
                 ORDER BY j.id DESC LIMIT 1000",
                [path_bytes(&path)],
            )?;
            for (outbox, root) in roots(db)? {
                let Ok(below) = path.strip_prefix(super::job::path_of(&root)) else {
                    continue;
                };
                let sql = "SELECT j.transfer FROM drops d JOIN jobs j ON j.drop_id = d.id
                           WHERE d.outbox = ? AND d.path = ? AND d.origin IS NULL ORDER BY j.id DESC LIMIT 1000";
                ids_found.extend(ids(db, sql, params![outbox, relative_bytes(below)])?);
            }
            ids_found.truncate(1000);
            Ok(ids_found)
        })
        .await
    }

    /// One page of the jobs that `filter` lets through, in the order of queueing.
    pub async fn list(&self, filter: Filter, page: Page) -> Result<Vec<JobRow>, DbError> {
        self.read(move |db| {
            db.prepare(&format!(
                "SELECT {JOB_COLUMNS} FROM {JOB_TABLES}
                 WHERE j.id > :after AND (j.state = 0 OR j.ended_ms >= :since)
                   AND (:state IS NULL OR j.state = :state) AND (:peer IS NULL OR j.peer = :peer)
                 ORDER BY j.id LIMIT :limit"
            ))?
            .query_map(
                named_params! {
                    ":after": page.after,
                    ":since": filter.since_ms,
                    ":state": filter.state,
                    ":peer": filter.peer.map(|p| p.0),
                    ":limit": i64::try_from(page.limit).unwrap_or(i64::MAX),
                },
                job_of,
            )?
            .collect()
        })
        .await
    }

    /// What happened to a job: milliseconds since 1970 and a sentence, oldest first. At most some fifty lines.
    pub async fn history(&self, id: TransferId) -> Result<Vec<(i64, String)>, DbError> {
        self.read(move |db| {
            let sql = format!("SELECT {JOB_COLUMNS} FROM {JOB_TABLES} WHERE j.transfer = ?");
            let Some(JobRow { cursor: row, job }) = db.query_row(&sql, [id.0], job_of).optional()? else {
                return Ok(Vec::new());
            };
            let mut lines: Vec<(i64, String)> = db
                .prepare("SELECT ms, text FROM history WHERE job = ? ORDER BY n")?
                .query_map([row], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_>>()?;
            // Every job has these two; they stand in its row.
            let queued = lines.partition_point(|(ms, _)| *ms < job.queued_ms);
            lines.insert(queued, (job.queued_ms, "queued".into()));
            if let (JobState::Delivered, Some(ms), Some(name)) = (job.state, job.ended_ms, job.delivered_as) {
                let end = lines.partition_point(|(at, _)| *at <= ms);
                lines.insert(end, (ms, format!("delivered as {name}")));
            }
            Ok(lines)
        })
        .await
    }

    /// How many jobs there are; costs the same however many that is.
    pub async fn counts(&self) -> Result<Counts, DbError> {
        self.read(|db| {
            let mut peers: BTreeMap<AgentId, PeerCounts> = BTreeMap::new();
            let mut outboxes: BTreeMap<OutboxId, u64> = BTreeMap::new();
            let mut tally = db.prepare(
                "SELECT t.peer, o.mark, t.state, t.n FROM tally t JOIN outboxes o ON o.id = t.outbox",
            )?;
            let mut rows = tally.query([])?;
            while let Some(row) = rows.next()? {
                let n = row.get::<_, i64>(3)?.cast_unsigned();
                let peer = peers.entry(AgentId(row.get(0)?)).or_default();
                let queued = outboxes.entry(OutboxId(row.get(1)?)).or_default();
                match row.get(2)? {
                    JobState::Queued => {
                        peer.queued += n;
                        *queued += n;
                    }
                    JobState::Delivered => peer.delivered += n,
                    JobState::Failed => peer.failed += n,
                    JobState::Cancelled => peer.cancelled += n,
                }
            }
            let oldest_queued_ms = db.query_row(OLDEST, [], |row| row.get(0)).optional()?;
            Ok(Counts {
                peers: peers.into_iter().collect(),
                outboxes: outboxes.into_iter().collect(),
                oldest_queued_ms,
            })
        })
        .await
    }
}

/// In two parts, each by an index of its own: most items of a busy outbox have left.
pub(super) const OUTBOXES: &str = "SELECT mark,
        EXISTS (SELECT 1 FROM drops INDEXED BY drops_lying WHERE outbox = o.id AND state < 2)
        OR EXISTS (SELECT 1 FROM drops INDEXED BY drops_leaving WHERE outbox = o.id AND state = 2)
    FROM outboxes o";

pub(super) const OLDEST: &str =
    "SELECT queued_ms FROM jobs WHERE state = 0 ORDER BY queued_running_ms, id LIMIT 1";

/// The lowest and the highest id that begin with these digits; None if they are no hex digits or too many.
fn prefix_range(hex: &str) -> Option<([u8; 16], [u8; 16])> {
    if hex.len() > 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let fill = |with: char| -> Option<[u8; 16]> {
        let padded: String = hex
            .to_ascii_lowercase()
            .chars()
            .chain(std::iter::repeat(with))
            .take(32)
            .collect();
        data_encoding::HEXLOWER
            .decode(padded.as_bytes())
            .ok()?
            .try_into()
            .ok()
    };
    Some((fill('0')?, fill('f')?))
}

fn roots(db: &Connection) -> Result<Vec<(i64, Vec<u8>)>> {
    db.prepare("SELECT id, root FROM outboxes")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// As a [`dropwire_protocol::RemotePath`] has it: `/` between components on every system.
fn relative_bytes(path: &Path) -> Vec<u8> {
    let parts: Vec<Vec<u8>> = path.iter().map(|part| path_bytes(Path::new(part))).collect();
    parts.join(&b'/')
}

fn ids(db: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Vec<TransferId>> {
    db.prepare(sql)?
        .query_map(params, |row| row.get(0).map(TransferId))?
        .collect()
}
