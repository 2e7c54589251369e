//! Addresses as they are written: `host`, `host:port`, `1.2.3.4:5`, `[::1]:5`. Names stay names; dialling looks them up.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};

use dropwire_protocol::name::escape;

use super::diagnostic::{Checked, ValueError};

/// The port where none is written.
pub(super) const DEFAULT_PORT: u16 = 7420;

/// Reads an address to dial; the answer always has a port.
pub(super) fn dial(text: &str) -> Checked<String> {
    match split(text)? {
        (_, 0) => Err(ValueError::new(
            "nobody can be dialled on port 0",
            "write the port the peer listens on, or none for 7420",
        )),
        (host, port) => Ok(format!("{host}:{port}")),
    }
}

/// Reads an address to listen on; the answer always has a port, 0 lets the system choose one.
pub(super) fn listen(text: &str) -> Checked<String> {
    let (host, port) = split(text).map_err(|wrong| ValueError {
        hint: format!("{}; `\"0.0.0.0:7420\"` listens on every IPv4 address", wrong.hint),
        ..wrong
    })?;
    Ok(format!("{host}:{port}"))
}

fn split(text: &str) -> Checked<(&str, u16)> {
    let text = text.trim();
    let shown = escape(text.as_bytes());
    let wrong = |why: &str, hint: &str| Err(ValueError::new(format!("`{shown}` {why}"), hint));
    let (host, port) = match text.rsplit_once(':') {
        // The last colon of an IPv6 address without a port is inside its brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if text.is_empty() {
        return Err(ValueError::new(
            "the address is empty",
            "write it like `\"office.example.org:7420\"`, or leave the key out",
        ));
    }
    if text.contains('/') {
        return wrong(
            "is more than an address",
            "write host and port alone, without scheme or path, like `\"office.example.org:7420\"`",
        );
    }
    if let Ok(v6) = text.parse::<Ipv6Addr>() {
        let hint = format!("write `\"[{v6}]:{DEFAULT_PORT}\"`");
        return wrong("is an IPv6 address without brackets", &hint);
    }
    if host.starts_with('[') {
        // A zone has to be a number: only so can the address be used without a lookup.
        if format!("{host}:0").parse::<SocketAddrV6>().is_err() {
            return wrong(
                "holds no IPv6 address",
                "write it like `\"[2001:db8::7]:7420\"`, a zone as its number: `\"[fe80::1%2]:7420\"`",
            );
        }
    } else if host.is_empty() {
        return wrong("has no host", "write a name or an IP address before the port");
    } else if host.contains(':') {
        return wrong(
            "has too many colons",
            "write an IPv6 address in brackets, like `\"[2001:db8::7]:7420\"`",
        );
    } else if is_numeric && host.parse::<Ipv4Addr>().is_err() {
        return wrong(
            "holds no IPv4 address",
            "write four numbers up to 255: `\"192.0.2.7:7420\"`",
        );
    } else if host.len() > 253 || !host.chars().all(fits) {
        return wrong(
            "is no address",
            "write it like `\"office.example.org:7420\"`, `\"192.0.2.7:7420\"` or `\"[2001:db8::7]:7420\"`",
        );
    }
    let port = port.map(|port| match port.starts_with('+') {
        true => None,
        false => port.parse().ok(),
    });
    match port.unwrap_or(Some(DEFAULT_PORT)) {
        Some(port) => Ok((host, port)),
        None => wrong(
            "has no port number after its colon",
            "write a port from 1 to 65535, or no colon for 7420",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses() {
        for (text, answer) in [
            ("office.example.org", "office.example.org:7420"),
            ("office.example.org:99", "office.example.org:99"),
            (" localhost:1 ", "localhost:1"),
            ("192.0.2.7", "192.0.2.7:7420"),
            ("192.0.2.7:65535", "192.0.2.7:65535"),
            ("[::1]", "[::1]:7420"),
            ("[2001:db8::7]:1", "[2001:db8::7]:1"),
            ("[fe80::1%2]:1", "[fe80::1%2]:1"),
        ] {
            assert_eq!(dial(text).as_deref(), Ok(answer), "{text}");
            assert_eq!(listen(text).as_deref(), Ok(answer), "{text}");
        }
        for text in [
            "",
            " ",
            ":7420",
            "host:",
            "host:x",
            "host:+1",
            "host:65536",
            "::1",
            "::1:7420x",
            "[::1",
            "[::1]7420",
            "[host]:1",
            "https://host",
            "host/path",
            "256.1.1.1",
            "1.2.3:7420",
            "ho st:1",
            "a:b:1",
            "h\u{202e}ost",
        ] {
            assert!(dial(text).is_err(), "{text}");
            assert!(listen(text).is_err(), "{text}");
        }
        assert_eq!(listen("127.0.0.1:0").as_deref(), Ok("127.0.0.1:0"));
        assert!(dial("127.0.0.1:0").is_err());
        assert_eq!(dial("fe80::1").unwrap_err().hint, "write `\"[fe80::1]:7420\"`");
    }

    proptest! {
        #[test]
        fn an_answer_reads_as_itself(text in "[a-z0-9.:\\[\\]%]{0,20}") {
            if let Ok(answer) = dial(&text) {
                prop_assert_eq!(dial(&answer), Ok(answer));
            }
        }
    }
}
