//! What needs a person, as `status` has it (pure).

use std::path::Path;

use crate::{
    control::{api::ProblemReport, wire::Time},
    db::Trouble,
    error::shown,
    failpoints,
    link::SharedKey,
    sender::stuck::StuckFiles,
};

/// All there is, the worst first: what the state folder suffers from; peers by name of which two have one key, or that
/// see two with ours; outboxes with what cannot leave them.
pub(super) fn all<'a>(
    state: impl Iterator<Item = ProblemReport>,
    keys: impl Iterator<Item = (String, SharedKey)>,
    stuck: impl Iterator<Item = (&'a Path, StuckFiles)>,
) -> Vec<ProblemReport> {
    let keys = keys.map(|(peer, key)| same_identity_twice(peer, key));
    let keys = keys.filter(|_| !failpoints::mutant("problem-key"));
    let stuck = stuck.map(|(outbox, told)| cannot_leave(outbox, &told));
    let stuck = stuck.filter(|_| !failpoints::mutant("problem-stuck"));
    state.chain(keys).chain(stuck).collect()
}

/// What the state folder suffers from.
pub(super) fn of_state(state_dir: &Path, trouble: Trouble) -> ProblemReport {
    ProblemReport {
        kind: "state_disk".to_owned(),
        subject: shown(state_dir),
        since: Time::from_ms(trouble.since_ms),
        text: trouble.text,
        hint: trouble.hint,
    }
}

fn same_identity_twice(peer: String, key: SharedKey) -> ProblemReport {
    ProblemReport {
        kind: "same_identity_twice".to_owned(),
        text: format!("{peer}: {}", key.text),
        subject: peer,
        since: Time::from(key.since),
        hint: key.hint.to_owned(),
    }
}

fn cannot_leave(outbox: &Path, told: &StuckFiles) -> ProblemReport {
    let subject = shown(outbox);
    let files = match told.files {
        1 => "1 delivered file cannot leave".to_owned(),
        files => format!("{files} delivered files cannot leave"),
    };
    ProblemReport {
        kind: "cannot_leave".to_owned(),
        text: format!("{files} {subject}: {}", told.reason.text),
        subject,
        since: Time::from_ms(told.since_ms),
        hint: told.reason.hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::sender::stuck::Reason;

    #[test]
    fn each_has_its_kind_and_its_way_out_and_the_worst_comes_first() {
        let trouble = Trouble {
            since_ms: 1,
            text: "the disk is full".into(),
            hint: "free space".into(),
        };
        let key = SharedKey {
            since: SystemTime::UNIX_EPOCH + Duration::from_millis(2),
            text: "two machines use one key".into(),
            hint: "give one a new key",
        };
        let told = StuckFiles {
            files: 3,
            since_ms: 3,
            reason: Reason {
                text: "they cannot be moved".into(),
                hint: "look at their rights",
            },
        };
        let found = all(
            [of_state(Path::new("/state"), trouble)].into_iter(),
            [("office".to_owned(), key)].into_iter(),
            [(Path::new("/out"), told)].into_iter(),
        );
        let shown: Vec<_> = found
            .iter()
            .map(|p| [&p.kind, &p.subject, &p.text, &p.hint].map(String::as_str))
            .collect();
        let expected = [
            ["state_disk", "/state", "the disk is full", "free space"],
            [
                "same_identity_twice",
                "office",
                "office: two machines use one key",
                "give one a new key",
            ],
            [
                "cannot_leave",
                "/out",
                "3 delivered files cannot leave /out: they cannot be moved",
                "look at their rights",
            ],
        ];
        assert_eq!(shown, expected);
        for (ms, problem) in (1..).zip(found) {
            assert_eq!(problem.since, Time::from_ms(ms));
        }
    }
}
