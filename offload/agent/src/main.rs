//! The `flowlift` program.

use clap::Parser;
use flowlift_agent::cli::{Asked, Cli};
use flowlift_agent::command::{self, Outcome};
use flowlift_agent::failure::{self, Failure};
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("FLOWLIFT_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let asked = Asked::of(&arguments);
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if asked.json && error.use_stderr() => {
            return fail(&Failure::of_usage(&asked.command, &error));
        }
        Err(error) => error.exit(),
    };
    match command::run(&cli) {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if asked.json => fail(&Failure::of(&asked.command, &error)),
        Err(error) => {
            eprintln!("flowlift: {}", failure::text(&error));
            ExitCode::from(2)
        }
    }
}

/// Tells a program that reads JSON of a failure.
fn fail(failure: &Failure) -> ExitCode {
    eprintln!("{failure}");
    ExitCode::from(2)
}

/// The reader of our output went away (`| head`), which is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(std::io::ErrorKind::BrokenPipe)
    })
}
