//! Addresses as they are written: `host`, `host:port`, `1.2.3.4:5`, `[::1]:5`. Names are kept as names; dialling looks them up.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};

use super::diagnostic::ValueError;

/// The port where none is written.
pub const DEFAULT_PORT: u16 = 7420;

/// Reads an address to dial; the answer always has a port.
pub fn dial(text: &str) -> Result<String, ValueError> {
    let (host, port) = split(text)?;
    if port == 0 {
        return Err(ValueError::new(
            "nobody can be dialled on port 0",
            "write the port the peer listens on, or none for 7420",
        ));
    }
    Ok(format!("{host}:{port}"))
}

/// Reads an address to listen on; the answer always has a port, 0 lets the system choose one.
pub fn listen(text: &str) -> Result<String, ValueError> {
    let (host, port) = split(text).map_err(|wrong| ValueError {
        hint: format!(
            "{}; `\"0.0.0.0:{DEFAULT_PORT}\"` listens on every IPv4 address",
            wrong.hint
        ),
        ..wrong
    })?;
    Ok(format!("{host}:{port}"))
}

const SUCH_V6: &str = "write an IPv6 address in brackets, like `\"[2001:db8::7]:7420\"`";

fn split(text: &str) -> Result<(String, u16), ValueError> {
    let trimmed = text.trim();
    let shown = dropwire_protocol::name::escape(text.as_bytes());
    if trimmed.is_empty() {
        return Err(ValueError::new(
            "the address is empty",
            "write it like `\"office.example.org:7420\"`, or leave the key out",
        ));
    }
    if trimmed.contains("://") || trimmed.contains('/') {
        return Err(ValueError::new(
            format!("`{shown}` is more than an address"),
            "write host and port alone, without scheme or path, like `\"office.example.org:7420\"`",
        ));
    }
    if let Ok(v6) = trimmed.parse::<Ipv6Addr>() {
        return Err(ValueError::new(
            format!("`{shown}` is an IPv6 address without brackets"),
            format!("write `\"[{v6}]:{DEFAULT_PORT}\"`"),
        ));
    }
    let (host, port) = match trimmed.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest
                .split_once(']')
                .ok_or_else(|| ValueError::new(format!("`{shown}` lacks its `]`"), SUCH_V6))?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or_else(|| no_address(&shown))?),
            };
            (ipv6(inside, &shown)?, port)
        }
        None => match trimmed.rsplit_once(':') {
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (trimmed.to_owned(), None),
        },
    };
    if !host.starts_with('[') {
        check_name(&host, &shown)?;
    }
    Ok((
        host,
        port.map_or(Ok(DEFAULT_PORT), |port| read_port(port, &shown))?,
    ))
}

fn ipv6(inside: &str, shown: &str) -> Result<String, ValueError> {
    // A zone has to be a number: only so can the address be used without a lookup.
    let whole = format!("[{inside}]:0");
    whole
        .parse::<SocketAddrV6>()
        .map(|_| format!("[{inside}]"))
        .map_err(|_| {
            ValueError::new(
                format!("`{shown}` holds no IPv6 address"),
                "write it like `\"[2001:db8::7]:7420\"`, a zone as its number: `\"[fe80::1%2]:7420\"`",
            )
        })
}

fn check_name(host: &str, shown: &str) -> Result<(), ValueError> {
    if host.is_empty() {
        return Err(ValueError::new(
            format!("`{shown}` has no host"),
            "write a name or an IP address before the port",
        ));
    }
    if host.contains(':') {
        return Err(ValueError::new(format!("`{shown}` has too many colons"), SUCH_V6));
    }
    let numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(ValueError::new(
            format!("`{shown}` holds no IPv4 address"),
            "write four numbers up to 255: `\"192.0.2.7:7420\"`",
        ));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.len() > 253 || !host.chars().all(fits) {
        return Err(no_address(shown));
    }
    Ok(())
}

fn read_port(port: &str, shown: &str) -> Result<u16, ValueError> {
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    port.parse().ok().filter(|_| digits).ok_or_else(|| {
        ValueError::new(
            format!("`{shown}` has no port number after its colon"),
            "write a port from 1 to 65535, or no colon for 7420",
        )
    })
}

fn no_address(shown: &str) -> ValueError {
    ValueError::new(
        format!("`{shown}` is no address"),
        "write it like `\"office.example.org:7420\"`, `\"192.0.2.7:7420\"` or `\"[2001:db8::7]:7420\"`",
    )
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
                prop_assert_eq!(dial(&answer), Ok(answer.clone()));
            }
        }
    }
}
