//! Fairway.
use std::process::ExitCode;

use fairway::bootstrap::command_line::CommandLine;

fn main() -> ExitCode {
    let line = match CommandLine::parse_from_args(std::env::args_os()) {
        Ok(line) => line,
        Err(e) => {
            let _ = e.print();
            // Help is no failure; Envoy leaves with 1 for everything else.
            return ExitCode::from(u8::from(e.use_stderr()));
        }
    };
    if line.version {
        println!("{}", CommandLine::version_text());
        return ExitCode::SUCCESS;
    }
    if line.hot_restart_version {
        println!("disabled");
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
