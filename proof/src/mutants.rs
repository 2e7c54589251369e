//! Each safeguard on a file's way, and the test that fails without it.
//!
//! The names stand in the agent's source, at the safeguard (`failpoints::mutant`, `failpoints::step`); a debug build
//! leaves out the one that `DROPWIRE_MUTANT` names.

use Proof::{EndToEnd, Equivalent, Inside};

/// How a safeguard is shown to be needed.
#[derive(Clone, Copy, Debug)]
pub enum Proof {
    /// One of these tests inside the agent's rooms fails without it.
    Inside(&'static [&'static str]),
    /// One of these end-to-end tests does.
    EndToEnd(&'static [&'static str]),
    /// None can: why nothing is lost without it.
    Equivalent(&'static str),
}

const ORDER: Proof = Inside(&["receiver::tests::order"]);
const FLOWS: Proof = Inside(&["receiver::tests::flows"]);
const RESUME: Proof = Inside(&["receiver::tests::resume"]);
const RECOVERY: Proof = Inside(&["receiver::tests::recovery"]);
const DISPOSE: Proof = Inside(&["leaving::tests"]);
const MARKER: Proof = Inside(&["leaving::marker::tests"]);
const SEND: Proof = Inside(&["sender::source::tests"]);
const QUEUE: Proof = Inside(&["queue::tests"]);
const DURABLE: Proof = Inside(&["fs::durable::tests"]);
const DB: Proof = Inside(&["db::tests"]);
const IDENTITY: Proof = Inside(&["identity::tests"]);
const RECEIPT: Proof = Inside(&["sender::receipts::tests"]);
const SPOOL: Proof = Inside(&["leaving::spool::tests"]);
const SENDING: Proof = Inside(&["commands::send::rules::tests"]);
const CONTROL: Proof = Inside(&["control::"]);
const WHOLE: Proof = Inside(&["outbox::whole::tests"]);
const TAKEN: Proof = Inside(&["receiver::tests::taken"]);
const ELSEWHERE: Proof = Inside(&["receiver::tests::elsewhere"]);
const DISKS: Proof = Inside(&["receiver::tests::disks"]);
const UNPACK: Proof = Inside(&["receiver::unpack::tests"]);
const LOBBY: Proof = Inside(&["link::lobby::tests"]);
const TWINS: Proof = Inside(&["link::twins::tests"]);
const LEAVES: Proof = Inside(&["leaving::folder::tests"]);

/// Name, what is left out, and what shows that it is needed; in the order of a file's way.
pub const MUTANTS: &[(&str, &str, Proof)] = &[
    (
        "S1-source",
        "the source's sync",
        Inside(&["outbox::inspect::tests"]),
    ),
    (
        "S1-syncfs",
        "the one sync of many sources",
        Inside(&["outbox::inspect::tests"]),
    ),
    ("S1-folder-each", "the syncs of all in a whole folder", WHOLE),
    ("S1-folder-syncfs", "the one sync of a whole folder", WHOLE),
    (
        "S1-writers",
        "a lease counts only where every writer is seen",
        Inside(&["outbox::inspect::tests"]),
    ),
    (
        "S1-case",
        "a name is unfinished whatever its case",
        Inside(&["fs::unsent::tests"]),
    ),
    (
        "S1-unread",
        "what cannot be read for a reason that passes is looked at again",
        Inside(&["outbox::inspect::tests"]),
    ),
    (
        "S1-others",
        "it is told where the kernel does not tell this user who writes",
        Inside(&["outbox::inspect::tests"]),
    ),
    (
        "S1-inodes",
        "numbers that do not last are no part of a version",
        Inside(&["fs::version::tests"]),
    ),
    (
        "scan-types",
        "a type that a listing does not tell is asked for",
        EndToEnd(&["file_systems::listings_without_types"]),
    ),
    (
        "S1-no-drop",
        "what is no drop by its name is not sent",
        Inside(&["outbox::ignore::tests"]),
    ),
    (
        "S1-system-folder",
        "a file that is named as a system's folder is any file",
        Inside(&["fs::unsent::tests"]),
    ),
    (
        "S1-whole-perhaps",
        "a whole folder with what may be half a file of rsync's rests for long",
        Inside(&["outbox::whole::tests"]),
    ),
    (
        "watch-thread",
        "a native watch is used once its thread has answered",
        Inside(&["watcher::tests"]),
    ),
    (
        "S1-snapshot",
        "nor is what a snapshot shows once more",
        Inside(&["outbox::scan::tests"]),
    ),
    (
        "S1-claimed",
        "nor is what lies in a folder that is an agent's own",
        Inside(&["owner::tests", "outbox::scan::tests"]),
    ),
    (
        "S1-mounted",
        "what lies on a disk mounted inside an outbox is looked for",
        EndToEnd(&["file_systems::a_disk_mounted_inside"]),
    ),
    (
        "S1-step",
        "a file changed just now rests where nothing is compared at the end",
        Inside(&["outbox::inspect::tests"]),
    ),
    ("S2-unknown", "a known version is not looked at again", QUEUE),
    (
        "S2-moved",
        "what was found late leads no job to where its outbox lay before",
        QUEUE,
    ),
    ("S2-known", "a known version is not queued again", QUEUE),
    (
        "S2-hidden",
        "what was delivered and only out of sight is not sent again",
        QUEUE,
    ),
    (
        "folder-in-use",
        "`folder` does not change while something found under its former value is open or kept",
        Inside(&["sender::folder_setting::tests"]),
    ),
    (
        "S2-way",
        "an outbox of which something was found under another `folder` finds nothing until that is gone",
        Inside(&["sender::folder_setting::tests"]),
    ),
    (
        "S2-left",
        "a version that had left is queued only if it is there now",
        QUEUE,
    ),
    (
        "S2-kept",
        "a kept file with the bytes that were delivered is not queued again",
        QUEUE,
    ),
    (
        "S2-retimed",
        "times that are set after the sending make no new drop",
        EndToEnd(&["leaving::times_that_are_set_late_make_no_second_file"]),
    ),
    (
        "S2-open",
        "nor do such times where nobody is known to have it",
        QUEUE,
    ),
    (
        "S2-unused",
        "a drop that became another version takes no id that was used",
        QUEUE,
    ),
    (
        "S5-archive-elsewhere",
        "an archive into which no rename leads is named before anything is moved",
        DISPOSE,
    ),
    (
        "S5-linger",
        "what was delivered stays for a while after its last change",
        DISPOSE,
    ),
    (
        "S5-siblings",
        "the removal of one name of a file keeps no other one",
        DISPOSE,
    ),
    (
        "S5-kept-time",
        "times that are set after the sending of a kept file are told",
        QUEUE,
    ),
    ("S5-long-after", "but not those that are set long after it", QUEUE),
    (
        "S5-last-time",
        "a time is told until the peer has that one",
        QUEUE,
    ),
    (
        "late-again",
        "a second late time finds the file as the first one left it",
        Inside(&["receiver::tests::keeping"]),
    ),
    (
        "late-time",
        "a time that comes late is only given to what was delivered",
        Inside(&["receiver::tests::keeping"]),
    ),
    ("S2-supersede", "an older version of the path ends", QUEUE),
    ("identity-once", "a key that is there is never replaced", IDENTITY),
    (
        "identity-lost",
        "a lost key is not made again beside its job list",
        IDENTITY,
    ),
    (
        "program-clean",
        "a program inherits nothing that the agent set for itself",
        Inside(&["daemon::program::tests"]),
    ),
    (
        "check-ours",
        "only the address where our own agent listens may be in use",
        Inside(&["cli::check"]),
    ),
    (
        "hint-right",
        "a hint is read before it is given",
        Inside(&["config::units::tests"]),
    ),
    ("ends-told", "the log tells of jobs that end undelivered", QUEUE),
    (
        "S3-folder-id",
        "what is read is in the outbox where it was found",
        SEND,
    ),
    ("S3-writer", "a file that somebody writes to is not read", SEND),
    ("S3-version", "the version before the first read", SEND),
    (
        "S3-lease",
        "the lease between two reads",
        Equivalent(
            "only spares sending the rest: the check after the last read asks the same lease, and without its yes no Done leaves",
        ),
    ),
    ("S3-end", "version and lease after the last read", SEND),
    ("S3-times", "with a whole lease other times void no pass", SEND),
    ("S3-path", "the path still leads to what was read", SEND),
    (
        "S3-cached",
        "bytes come from the disk where others write unseen",
        EndToEnd(&["file_systems::bytes_that_this_machine_keeps_are_not_sent"]),
    ),
    (
        "S3-reopen",
        "the path is opened again where others write unseen",
        SEND,
    ),
    (
        "S3-folder-version",
        "a whole folder's version before the first byte",
        SEND,
    ),
    ("S3-folder-end", "the walk through it after the last", SEND),
    (
        "S3-prefix",
        "a resume begins with the digest of our own bytes",
        SEND,
    ),
    (
        "keep-witness",
        "a kept file's bytes are compared where its ctime alone is another",
        Inside(&["sender::reconcile::tests"]),
    ),
    (
        "send-room",
        "a copy leaves room for the job list",
        Inside(&["leaving::spool::room::tests"]),
    ),
    ("send-copy", "the sync of a copy made by `send`", SPOOL),
    ("send-dir", "the sync of the send's folder", SPOOL),
    ("send-folder", "the sync of a copied folder", SPOOL),
    (
        "send-parent",
        "the sync of the folder that holds the send's",
        SPOOL,
    ),
    (
        "lobby-progress",
        "a silent connection goes before one that is in its handshake",
        LOBBY,
    ),
    ("lobby-party", "of equals one of the busiest address goes", LOBBY),
    (
        "lobby-pair",
        "few proven connections of a pair without a link",
        LOBBY,
    ),
    (
        "twins-kept-out",
        "a run that comes back does not get the other one's link",
        TWINS,
    ),
    ("twins-certain", "two machines with one key are told of", TWINS),
    (
        "send-identity",
        "a passed file is the one that its name was told for",
        SENDING,
    ),
    (
        "send-own",
        "dropwire's own files are not sent, whatever leads to them",
        SENDING,
    ),
    (
        "send-own-name",
        "nor is what is in any `.dropwire` but the archive",
        SENDING,
    ),
    (
        "control-descriptors",
        "a connection keeps one group of passed files, and no file without a permit",
        CONTROL,
    ),
    ("control-places", "a user has so many connections", CONTROL),
    (
        "control-upkeep",
        "a control socket that has gone is made again",
        CONTROL,
    ),
    (
        "control-waits",
        "a send that waits for others holds no place",
        CONTROL,
    ),
    (
        "one-question",
        "a disk that does not answer is asked by one thread",
        Inside(&["receiver::asking::tests"]),
    ),
    (
        "control-request",
        "a request is bounded in bytes and in time",
        CONTROL,
    ),
    (
        "R1-state-disk",
        "nothing new is taken while the state disk is nearly full",
        Inside(&["receiver::tests::bounds"]),
    ),
    (
        "R1-rows",
        "a peer's outcomes in the ledger are bounded",
        Inside(&["receiver::tests::bounds"]),
    ),
    (
        "R1-too-large",
        "a file that the file system cannot hold is not received again",
        Inside(&["receiver::tests::bounds"]),
    ),
    ("R1-known", "a known transfer is not begun again", FLOWS),
    ("R1-bound", "path and size are bound to the id", FLOWS),
    ("R1-fence", "the older link's writer stops", FLOWS),
    (
        "withdraw-again",
        "a withdrawal that met a busy transfer is tried again",
        FLOWS,
    ),
    (
        "large-ended",
        "nothing is kept of a large transfer that has ended",
        Inside(&["receiver::writers::tests"]),
    ),
    (
        "session-wanted",
        "what waits for another link's commit ends with its own link",
        FLOWS,
    ),
    ("session-links", "so many links of a peer are at work", FLOWS),
    (
        "R2-folder-id",
        "a partial counts only in its own inbox",
        Equivalent(
            "only spares a resume that is likely in vain: a partial counts no further than its bytes re-read right, wherever it lies",
        ),
    ),
    ("R3-chunk-digest", "a chunk has its digest", FLOWS),
    ("R3-length", "no more of a file than announced", FLOWS),
    ("R3-data", "the bytes' sync before a checkpoint", ORDER),
    (
        "R3-short-partial",
        "a partial shorter than its checkpoint starts over",
        RESUME,
    ),
    ("R4-digest", "a file's size and digest at the end", FLOWS),
    ("R4-reread", "a resumed prefix is read again", RESUME),
    (
        "R4-seal",
        "so is one that was touched since this run let go of it",
        RESUME,
    ),
    (
        "R3-there",
        "a checkpoint looks whether the partial is still there",
        TAKEN,
    ),
    (
        "R4-proven",
        "only a prefix that this run verified is let go of as good",
        RESUME,
    ),
    (
        "R2-parted",
        "an inbox waits while something is mounted on its own folder",
        DISKS,
    ),
    ("R5-partial", "a large partial's sync", ORDER),
    ("R5-partial-dir", "the sync of its folder", ORDER),
    ("R5-folder-file", "the sync of an unpacked file", UNPACK),
    ("R5-folder-dir", "the sync of an unpacked folder", UNPACK),
    (
        "R5-folder-syncfs",
        "the one sync of all that was unpacked",
        UNPACK,
    ),
    (
        "R5-folder-partial-dir",
        "the sync of the folder that holds it",
        UNPACK,
    ),
    ("R5-small", "a small partial's sync", ORDER),
    ("R5-small-dir", "the sync of its folder", ORDER),
    ("R5-syncfs", "the one sync of many partials", ORDER),
    (
        "R5-inbox-dir",
        "nothing is placed in a folder that was replaced",
        FLOWS,
    ),
    (
        "R5-witness",
        "where no number tells one folder from another, what is made in one has to be seen in the other",
        Inside(&["receiver::inbox_dir::tests"]),
    ),
    (
        "R5-own",
        "where no number tells, dropwire's own folder is known by its id",
        Inside(&["receiver::inbox_dir::tests"]),
    ),
    (
        "R5-folder-whole",
        "an unpacked folder is compared with its stream before it is placed",
        TAKEN,
    ),
    (
        "R5-both-times",
        "the time of the last change is set together with that of the last reading",
        Inside(&["fs::file_system::tests"]),
    ),
    (
        "R5-rights",
        "what arrives gets the group and the access list that its folder hands on",
        Inside(&["receiver::tests::team"]),
    ),
    ("R6-salt", "nobody can guess a receipt that was not given", FLOWS),
    ("R6", "the commit of the intent", FLOWS),
    (
        "R6-next-name",
        "the commit of the next name, where one was taken",
        ORDER,
    ),
    ("noreplace", "a name that is taken is never replaced", DURABLE),
    ("link-dir", "a hard link's sync before the old name goes", DURABLE),
    (
        "R6-dialect",
        "names that the inbox's file system refuses are known before bytes come",
        Inside(&["receiver::dialect::tests"]),
    ),
    ("R7-there", "only the partial that was verified is placed", TAKEN),
    (
        "R7-bytes",
        "where no number and no time tells a partial from another file, its bytes do",
        TAKEN,
    ),
    (
        "R6-readable",
        "nothing gets a name in a folder that cannot be synced",
        TAKEN,
    ),
    (
        "R6-whole",
        "a folder that lost a piece while its intent was written down gets no name",
        TAKEN,
    ),
    (
        "R7-whole",
        "nor does one count that lost it just before its name",
        TAKEN,
    ),
    (
        "R7-read",
        "nor does what was read speak for what has its name by then",
        TAKEN,
    ),
    (
        "R7-open-files",
        "behind FUSE and network mounts an open file does not tell of itself",
        Inside(&["receiver::commit::naming::tests"]),
    ),
    (
        "R7-sure",
        "times tell only where changes have one of their own",
        Inside(&["fs::version::tests"]),
    ),
    (
        "R7-elsewhere-file",
        "the sync of a copy on another file system",
        ELSEWHERE,
    ),
    (
        "R7-elsewhere-partial",
        "the sync of the folder that it is made in",
        ELSEWHERE,
    ),
    (
        "R7-elsewhere-dir",
        "the sync of its name before the partial goes",
        ELSEWHERE,
    ),
    (
        "R2-copy",
        "what is for a disk inside the inbox is declined at once if that is missing or full",
        DISKS,
    ),
    ("elsewhere-room", "a copy leaves free what stays free", DISKS),
    ("R7-spoilt", "a partial that reads back wrong is not kept", DISKS),
    (
        "elsewhere-below",
        "where the top of a disk cannot be written, a folder below it serves",
        DISKS,
    ),
    (
        "declines-by-disk",
        "the receiver tells that its disk takes nothing",
        TAKEN,
    ),
    (
        "disk-remembered",
        "a disk inside the inbox is known from its first file on",
        DISKS,
    ),
    (
        "disk-border",
        "the folder under a mount point is not taken for the disk",
        DISKS,
    ),
    ("disk-folder-id", "nor is another disk", DISKS),
    ("start-copies", "a start waits for no copy to another disk", DISKS),
    (
        "rule-dialect",
        "a whole folder is known by the names that its own disk takes",
        DISKS,
    ),
    (
        "shortage",
        "what a shortage kept from being asked is asked again",
        DISKS,
    ),
    (
        "R7-note",
        "which files got their names is recorded",
        Inside(&["receiver::named::tests", "receiver::tests::taken"]),
    ),
    (
        "R7-keep",
        "what is whole and cannot be placed is not sent again",
        TAKEN,
    ),
    (
        "R7-link-way",
        "the folders' syncs before a link's old name goes",
        ORDER,
    ),
    (
        "R7-link-hold",
        "nothing more is taken after a link's sync failed",
        ORDER,
    ),
    ("R8-inbox-dirs", "the sync of the inbox's folders", ORDER),
    ("R8-partial-dir", "the sync of the partials' folder", ORDER),
    ("R8-syncfs", "the one sync of many of the inbox's folders", ORDER),
    (
        "unmake",
        "folders made for a file that is not placed go again",
        Inside(&["receiver::place::tests"]),
    ),
    (
        "inode-share",
        "a share of the inbox's inodes stays free",
        Inside(&["receiver::space::tests"]),
    ),
    (
        "kept-open",
        "no passed descriptor of the job list is closed",
        Inside(&["fs::own_files::tests"]),
    ),
    (
        "own-links",
        "a link to one of the agent's own files is not opened",
        Inside(&["fs::own_files::tests"]),
    ),
    (
        "doubt-lanes",
        "a large file that is compared holds up no small one",
        Inside(&["sender::doubts::tests"]),
    ),
    (
        "S5-busy",
        "a peer that has its hands full is no failed attempt",
        QUEUE,
    ),
    ("S5-former", "a job gets a bounded number of ids", QUEUE),
    (
        "S5-bytes-wait",
        "what had other bytes than were delivered waits before it is sent again",
        QUEUE,
    ),
    (
        "S5-judged",
        "a drop stays only if it still is the version that was judged",
        QUEUE,
    ),
    (
        "alias-bound",
        "a peer's folders with other names are bounded",
        Inside(&["receiver::aliases::tests"]),
    ),
    (
        "fair-copies",
        "few files that are copied to another disk fill a batch",
        ELSEWHERE,
    ),
    (
        "fair-turns",
        "peers' small files take turns",
        Inside(&["receiver::fair_queue::tests"]),
    ),
    (
        "fair-memory",
        "nobody takes more than a share of the memory for small files",
        Inside(&["receiver::byte_budget::tests"]),
    ),
    (
        "R8-hold",
        "nothing more is taken after a folder's sync failed",
        ORDER,
    ),
    (
        "R8-shortage",
        "a folder that could not be opened to be synced has lost nothing",
        TAKEN,
    ),
    (
        "R8-held",
        "no folder is synced again after one could not be",
        ORDER,
    ),
    ("R9", "the row says delivered", FLOWS),
    (
        "rule-folder-id",
        "a row placing counts only in its own inbox",
        RECOVERY,
    ),
    (
        "rule-given-up",
        "what was being placed in a folder that was given up is taken again, whoever has it while the inbox is opened",
        RECOVERY,
    ),
    (
        "rule-absence",
        "a partial that is gone was not delivered for that",
        RECOVERY,
    ),
    (
        "rule-was-named",
        "a link or a copy that had its name does not get another",
        Inside(&["receiver::tests::recovery", "receiver::tests::taken"]),
    ),
    (
        "rule-whole",
        "a folder under its final name counts only with all that is to be in it",
        Inside(&["receiver::tests::whole"]),
    ),
    (
        "rule-time",
        "a file under the final name counts by its inode only with the time it was given",
        RECOVERY,
    ),
    (
        "rule-bytes",
        "a partial with another inode counts only by its bytes",
        RECOVERY,
    ),
    (
        "rule-next-name",
        "the commit of the next name, at the start",
        RECOVERY,
    ),
    (
        "rule-link",
        "the new name's sync before the old one goes, at the start",
        ORDER,
    ),
    ("rule-R8", "the folders' syncs again", ORDER),
    (
        "S4-signature",
        "the receipt's signature",
        Inside(&["identity::receipts::tests"]),
    ),
    (
        "S4-key",
        "the receipt's key is the receiver's",
        Inside(&["identity::receipts::tests"]),
    ),
    ("S4-transfer", "the receipt's transfer", RECEIPT),
    ("S4-sender", "the receipt's sender", RECEIPT),
    ("S4-receiver", "the receipt's receiver", RECEIPT),
    ("S4-path", "the receipt's path", RECEIPT),
    ("S4-size", "the receipt's size", RECEIPT),
    ("S4-digest", "the receipt's digest is of what was read", RECEIPT),
    (
        "S4-rehash",
        "an old receipt counts for the file only after it was hashed",
        EndToEnd(&["a_lost_job_list_hides_no_other_bytes"]),
    ),
    (
        "S4-version",
        "a receipt counts for the version that was read",
        QUEUE,
    ),
    ("S4-once", "a second receipt changes nothing", QUEUE),
    (
        "S4-one-digest",
        "peers with different bytes dispose of nothing",
        QUEUE,
    ),
    ("S5-every-peer", "the file stays until every peer has it", QUEUE),
    ("S5-folder-id", "an outbox without its id is held", DISPOSE),
    ("S5-writer", "a file that somebody writes to stays", DISPOSE),
    ("S5-version", "another version stays", DISPOSE),
    ("S5-digest", "other bytes stay", DISPOSE),
    (
        "S5-unseen",
        "large files too are compared where a change may not show",
        DISPOSE,
    ),
    (
        "S5-lease",
        "the lease after the look",
        Equivalent(
            "only spares the rename: the lease is asked again after it and before the file goes, and the file is then given back",
        ),
    ),
    ("S5-again", "what was moved is what was looked at", DISPOSE),
    (
        "S5-moved",
        "its bytes are asked where no number tells it from another",
        DISPOSE,
    ),
    (
        "S5-descriptors",
        "no more leave together than descriptors last for",
        EndToEnd(&["files_wait_for_descriptors"]),
    ),
    (
        "S5-moved-times",
        "what the move did to its times is no writer",
        DISPOSE,
    ),
    ("S5-folder-version", "a whole folder's version", LEAVES),
    ("S5-folder-digest", "its bytes", LEAVES),
    ("S5-folder-again", "the walk through it in leaving", LEAVES),
    (
        "S5-folder-list",
        "what may be removed is on disk before that",
        LEAVES,
    ),
    ("S5-folder-gone", "its removal is decided durably", LEAVES),
    (
        "S5-folder-late",
        "what came into it after the check stays",
        LEAVES,
    ),
    (
        "S5-folder-links",
        "a further name of a file that was removed goes, too",
        LEAVES,
    ),
    (
        "S5-folder-freed",
        "a file that could not be removed is known by its bytes once it was freed",
        LEAVES,
    ),
    (
        "S5-folder-note",
        "the sync of the digest by which that is told",
        LEAVES,
    ),
    (
        "adopt-leaving",
        "what was on its way out of an outbox that is adopted comes back",
        Inside(&["leaving::adopted::tests"]),
    ),
    (
        "adopt-name",
        "and under its own name, where that is known",
        Inside(&["leaving::adopted::tests"]),
    ),
    ("S5-both", "a crash left it under its path too", DISPOSE),
    ("S5-twice", "a crash left it in the archive too", DISPOSE),
    (
        "S5-numbers",
        "where numbers do not last, a crash left it under two names too",
        DISPOSE,
    ),
    ("S5-last-lease", "the lease at the last moment", DISPOSE),
    (
        "S5-shortage",
        "a shortage is no lost write, and needs no restart",
        DISPOSE,
    ),
    (
        "S5-gone-place",
        "the archive's sync where a shortage cut it off",
        DISPOSE,
    ),
    (
        "S1-mount-note",
        "a mount is noted before any file is taken from it",
        EndToEnd(&["leaving::what_is_unmounted_before"]),
    ),
    (
        "S5-mount-point",
        "a folder on which something is mounted at times is not removed",
        Inside(&["outbox::place::tests"]),
    ),
    (
        "S5-mount",
        "what is missing behind a mount that is not there is not gone",
        DISPOSE,
    ),
    (
        "S5-mount-folder",
        "nor is it when the mount's folder was removed",
        DISPOSE,
    ),
    (
        "mount-notes",
        "notes of mounts are bounded",
        Inside(&["fs::border::tests"]),
    ),
    (
        "keep-mount",
        "what stays behind a mount that is not there is not missed",
        Inside(&["sender::reconcile::tests"]),
    ),
    (
        "S5-claimed",
        "nothing leaves a folder that became another agent's",
        Inside(&["leaving::tests"]),
    ),
    (
        "S3-mount",
        "what is missing behind a mount that is not there is not gone",
        Inside(&["sender::source::tests"]),
    ),
    (
        "S5-mount-note",
        "a mount is noted durably before anything leaves by it",
        DISPOSE,
    ),
    ("S5-own-dir", "the sync that keeps `leaving`", DISPOSE),
    (
        "S5-folders",
        "the sync of folders made again for a file given back",
        DISPOSE,
    ),
    (
        "S5-dirs",
        "the syncs of the outbox's and the archive's folders",
        DISPOSE,
    ),
    ("S5-syncfs", "the one sync for many folders", DISPOSE),
    ("S5-leaving-dir", "the sync of `leaving`", DISPOSE),
    ("S5-marker-dir", "the sync that keeps a marker given back", MARKER),
    (
        "S5-marker-leaving-dir",
        "the sync that takes it out of `leaving`",
        MARKER,
    ),
    (
        "S5-back-dir",
        "the sync of the folder that gets its file back",
        DISPOSE,
    ),
    (
        "S5-back-leaving-dir",
        "the sync of `leaving` after that",
        Equivalent(
            "lost in a power cut, the old name in `leaving` is found at the start and the same checks give the file back once more",
        ),
    ),
    ("S6", "the commit that the file has left", QUEUE),
    (
        "S6-late",
        "who has a file whose time was set late is told when it leaves, not with the next other word",
        QUEUE,
    ),
    (
        "S6-again",
        "a name that is taken again is looked at where nothing tells the new file",
        Inside(&["sender::cleanup::reused_names::tests"]),
    ),
    ("commit-sync", "every commit is synced", DB),
    (
        "commit-full-again",
        "commits are synced again after one that was not",
        DB,
    ),
    ("commit-failed", "after a failed commit everything is refused", DB),
    (
        "index-blocks",
        "the log's index has its blocks before it is used",
        DB,
    ),
    ("commit-not-now", "a commit that cannot be made now waits", DB),
    (
        "reserve",
        "what is kept beside the job list for a full disk",
        EndToEnd(&["disk_full::a_start_on_a_full_disk_delivers_what_fills_it"]),
    ),
    (
        "state-files",
        "what is no file has no file's name in the state folder",
        Inside(&["daemon::state::tests"]),
    ),
    (
        "start-waits",
        "a start waits for room, and tells what for",
        EndToEnd(&["starting::the_first_start_of_all_waits_on_a_full_disk"]),
    ),
    (
        "room-tried",
        "root uses the room that is kept back for root",
        EndToEnd(&["disk_full::a_start_on_a_disk_that_root_filled"]),
    ),
    (
        "room-tried-left",
        "what a killed agent took to see whether there is room is given back",
        Inside(&["db::room::tests"]),
    ),
    ("write-file", "the sync of a key or folder id", DURABLE),
    ("write-dir", "the sync of its folder", DURABLE),
    (
        "space-decays",
        "room is kept for what can arrive at the pace of the last minute",
        Inside(&["receiver::space::tests"]),
    ),
    (
        "space-share",
        "a peer keeps no more than its share while others ask",
        Inside(&["receiver::space::tests"]),
    ),
    (
        "no-space-told",
        "a disk that tells of no space is not taken for full",
        Inside(&["fs::disk::tests"]),
    ),
    (
        "owner",
        "a folder that belongs to another agent is not used",
        Inside(&["owner::tests"]),
    ),
    (
        "own-fifo",
        "what is no file is not waited for in `.dropwire`",
        Inside(&["fs::folder_id::tests"]),
    ),
    (
        "archive-taken",
        "a folder whose name in the archive is taken gets a number",
        Inside(&["leaving::tests"]),
    ),
    (
        "inbox-lock",
        "an inbox that a clone of this agent has open is not used",
        Inside(&["owner::tests"]),
    ),
    (
        "folder-home",
        "a folder whose id is at home elsewhere is not used",
        Inside(&["homes::tests"]),
    ),
    (
        "folder-exchange",
        "an id goes on to be expected at the path of a folder that changed places",
        Inside(&["homes::tests"]),
    ),
    (
        "folder-away",
        "a folder whose home is not there now is not taken for moved",
        Inside(&["homes::tests"]),
    ),
    (
        "folder-inbox",
        "an inbox's folder becomes no outbox by being moved",
        Inside(&["homes::tests"]),
    ),
    (
        "folder-id-dir",
        "the sync that keeps a folder id's folder",
        Inside(&["fs::folder_id::tests"]),
    ),
    (
        "adopt-damaged",
        "only a damaged folder is to be adopted",
        Inside(&["owner::tests"]),
    ),
    (
        "config-pipe",
        "a pipe is no config",
        Inside(&["config::read::tests"]),
    ),
    (
        "control-busy",
        "an agent that closed a connection is busy, not gone",
        CONTROL,
    ),
    (
        "brief",
        "what is long is told in brief",
        Inside(&["error::tests"]),
    ),
    ("read-not-now", "a read that cannot be done now is told so", DB),
    (
        "question-panics",
        "a question that panics does not stay open",
        Inside(&["receiver::asking::tests"]),
    ),
    (
        "begun-memory",
        "files that are begun and not ended share one budget",
        Inside(&["receiver::byte_budget::tests"]),
    ),
    ("send-files", "one `send` is of so many files at most", SPOOL),
    (
        "problem-key",
        "`status` tells of two machines with one key",
        Inside(&["commands::problems::tests"]),
    ),
    (
        "problem-stuck",
        "`status` tells of what cannot leave its outbox",
        Inside(&["commands::problems::tests"]),
    ),
    (
        "log-room",
        "log lines that nobody takes are lost instead of kept",
        Inside(&["cli::logs::lossy::tests"]),
    ),
];

/// The names that stand at safeguards in this source text, as it is written or by rustfmt.
pub fn named_in(source: &str) -> impl Iterator<Item = &str> {
    ["failpoints::mutant(\"", "failpoints::step(\""]
        .into_iter()
        .flat_map(move |call| {
            let named = source.split(call).skip(1);
            named.filter_map(|rest| rest.split('"').next())
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::harness::files;

    /// A safeguard without a line here would never be tried.
    #[test]
    fn the_table_has_what_the_source_has() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/src");
        let mut sources = String::new();
        files::walk(&root, &mut |path| {
            sources += &std::fs::read_to_string(path).expect("a source file");
            true
        });
        let in_source: BTreeSet<&str> = named_in(&sources).collect();
        // The fields of a receipt share one line.
        let fields = ["S4-transfer", "S4-sender", "S4-receiver", "S4-path", "S4-size"];
        let in_table = MUTANTS.iter().map(|(name, ..)| *name);
        let in_table: BTreeSet<&str> = in_table.filter(|name| !fields.contains(name)).collect();
        assert_eq!(in_source, in_table);
        assert!(sources.contains("failpoints::mutant(&format!(\"S4-{field}\"))"));
    }
}
