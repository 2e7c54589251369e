//! The program `dropwire`; everything is in the library.

fn main() -> std::process::ExitCode {
    dropwire::cli::main()
}
