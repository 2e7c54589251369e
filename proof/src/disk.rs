//! Loop-mounted file systems whose power can be cut.
