//! What the ledger is asked costs the same however much it holds: counted in steps of SQLite's virtual machine.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rusqlite::Connection;

use super::{
    super::{ledger::*, placing::Placing},
    *,
};
use crate::fs::durable::How;

/// More than any of these takes that follows an index, and far fewer than rows there are.
const STEPS: u64 = 2_500;
/// Of each kind of row.
const ROWS: u32 = 5_000;

static COUNTED: AtomicU64 = AtomicU64::new(0);

fn number(n: u32) -> TransferId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_be_bytes()); // in no order
    TransferId(id)
}

fn placing() -> Placing {
    Placing {
        place: RemotePath::parse(b"there").unwrap(),
        inode: 7,
        how: How::Renamed,
        digest: Digest([4; 32]),
        receipt: Receipt {
            body: vec![1],
            key: vec![2],
            signature: vec![3],
            audit_path: Vec::new(),
        },
    }
}

/// For each of two peers: many rows delivered, known and not known to the peer, many withdrawn, a few in work.
fn full() -> Connection {
    let mut db = Connection::open_in_memory().unwrap();
    migrations().to_latest(&mut db).unwrap();
    db.execute("INSERT OR REPLACE INTO running VALUES (1, 1)", [])
        .unwrap();
    let (manifest, placing) = (manifest("file", 5), placing());
    let tx = db.transaction().unwrap();
    for peer in [ANA, BOB] {
        for n in 0..ROWS {
            let place_one = |key| place(&tx, key, &manifest, [1; 16], &placing, 1).unwrap();
            let [known, unknown, gone] = [0, 1, 2].map(|kind| (peer, number(n * 4 + kind)));
            place_one(known);
            place_one(unknown);
            deliver(&tx, &[(known, Kind::File, 5), (unknown, Kind::File, 5)], 1).unwrap();
            forget(&tx, peer, &[known.1]).unwrap();
            withdraw(&tx, gone, 1).unwrap();
        }
        for n in 0..5 {
            begin(&tx, (peer, number(n * 4 + 3)), &manifest, [1; 16], 1).unwrap();
            place(&tx, (peer, number(n * 4 + 103)), &manifest, [1; 16], &placing, 1).unwrap();
        }
    }
    tx.commit().unwrap();
    db.progress_handler(
        1,
        Some(|| {
            COUNTED.fetch_add(1, Relaxed);
            false
        }),
    )
    .unwrap();
    db
}

#[test]
fn no_question_to_the_ledger_walks_over_its_rows() {
    let db = full();
    let manifest = manifest("file", 5);
    let key = |n| (ANA, number(n));
    let last = Cell::new(COUNTED.load(Relaxed));
    let took = |what: &str, bound: u64| {
        let now = COUNTED.load(Relaxed);
        let steps = now - last.replace(now);
        assert!(steps > 0 && steps < bound, "{what}: {steps} steps");
    };
    let (ms, folder_id) = (2, [1; 16]);

    find(&db, key(0)).unwrap().unwrap();
    took("look", STEPS);
    begin(&db, key(1_000_003), &manifest, folder_id, ms).unwrap();
    took("begin", STEPS);
    let checkpoint = Checkpoint {
        offset: 3,
        digest: Digest([0; 32]),
        hash_state: vec![0],
    };
    add_checkpoint(&db, key(1_000_003), &checkpoint, ms).unwrap();
    took("add_checkpoint", STEPS);
    assert_eq!(checkpoints(&db, key(1_000_003)).unwrap().len(), 1);
    took("checkpoints", STEPS);
    place(&db, key(1_000_003), &manifest, folder_id, &placing(), ms).unwrap();
    took("place", STEPS);
    unplace_homeless(&db, key(1_000_003)).unwrap();
    took("unplace_homeless", STEPS);
    assert_eq!(deliver(&db, &[(key(103), Kind::File, 5)], ms).unwrap(), 1);
    took("deliver", STEPS);
    forget(&db, ANA, &[key(103).1]).unwrap();
    took("forget", STEPS);
    withdraw(&db, key(1_000_007), ms).unwrap();
    took("withdraw", STEPS);
    assert!(delivered_file(&db, key(0)).unwrap().is_some());
    took("delivered_file", STEPS);
    retime(&db, &[(key(0), manifest.mtime)]).unwrap();
    took("retime", STEPS);
    touch(&db, key(3), ms).unwrap();
    took("touch", STEPS);
    assert!(drop_receiving(&db, key(3)).unwrap());
    took("drop_receiving", STEPS);
    is_idle(&db, key(7), Duration::ZERO).unwrap();
    took("is_idle", STEPS);
    assert_eq!(idle(&db, Duration::ZERO).unwrap().len(), 10);
    took("idle", STEPS);
    assert_eq!(receiving_of(&db, ANA).unwrap().len(), 5);
    took("receiving_of", STEPS);
    assert_eq!(all_placing(&db, folder_id).unwrap().len(), 9);
    took("all_placing", STEPS);
    assert_eq!(all_partials(&db, folder_id).unwrap().len(), 19);
    took("all_partials", STEPS);
    assert_eq!(homeless_placing(&db).unwrap().len(), 9);
    took("homeless_placing", STEPS);
    assert_eq!(placing_elsewhere(&db, folder_id).unwrap(), 0);
    took("placing_elsewhere", STEPS);
    give_up_elsewhere(&db, folder_id).unwrap();
    took("give_up_elsewhere", STEPS);
    assert_eq!(drop_known(&db, BOB, 3).unwrap().number, 3);
    took("drop_known", STEPS);
    assert_eq!(drop_ended(&db, Duration::ZERO, 3).unwrap(), 3);
    took("drop_ended", STEPS);
    assert_eq!(drop_ended(&db, Duration::from_secs(1), 3).unwrap(), 0);
    took("drop_ended, nothing due", STEPS);
    totals(&db).unwrap();
    took("totals", STEPS);
    // Those that stay are passed over, but not read.
    drop_tombstones(&db, BOB, ROWS as usize - 3).unwrap();
    took("drop_tombstones", u64::from(ROWS) * 12);
}
