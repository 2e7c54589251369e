//! Both halves of the yardstick. `compare` starts them; nobody else needs to.
//!
//! `yardstick receive INBOX ADDRESS CARD [direct] [auto]`, `yardstick send OUTBOX CARD [auto]`: CARD is a file by which
//! the sender learns where to connect and whom to trust; `direct` writes large files past the page cache; `auto` leaves
//! the sockets' buffers to the kernel. The sender answers each line, a name in its outbox, with one as soon as it is
//! durable.

use std::{path::Path, process::ExitCode};

use dropwire_bench::{
    failed,
    yardstick::{Buffers, receive, send},
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let buffers = match arguments.contains(&"auto") {
        true => Buffers::Automatic,
        false => Buffers::Fixed,
    };
    let ran = match arguments[..] {
        ["receive", inbox, address, card, ref more @ ..] => {
            let direct = more.contains(&"direct");
            receive::run(Path::new(inbox), address, Path::new(card), direct, buffers)
        }
        ["send", outbox, card, ..] => send::run(Path::new(outbox), Path::new(card), buffers),
        _ => Err(failed("started by `compare` only")),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("yardstick: {error}");
            ExitCode::FAILURE
        }
    }
}
