//! Fairway.
use std::process::ExitCode;

use fairway::bootstrap::command_line::CommandLine;

fn main() -> ExitCode {
    let line = match CommandLine::parse_from_args(std::env::args_os()) {
        Ok(line) => line,
        Err(e) => e.exit(),
    };
    if line.version {
        println!("{}", CommandLine::version_text());
        return ExitCode::SUCCESS;
    }
    match fairway::server::process::run(line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
