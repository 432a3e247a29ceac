//! Arguments that the benchmarks share.

use super::cpu;
use crate::failure::Tell;
use anyhow::{Result, anyhow};
use clap::Args;
use std::time::Duration;

/// How long, where, and what is printed.
#[derive(Debug, Args)]
pub(super) struct Measure {
    /// Seconds of each part that has no end of its own.
    #[arg(long, value_name = "N", default_value_t = 3.0)]
    seconds: f64,
    /// First core of the threads. [default: so that the last thread has the last core]
    #[arg(long, value_name = "CORE")]
    core: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Measure {
    /// `--seconds`.
    ///
    /// # Errors
    /// It is no time that can be measured.
    pub(super) fn time(&self) -> Result<Duration> {
        match Duration::try_from_secs_f64(self.seconds) {
            Ok(time) if !time.is_zero() => Ok(time),
            _ => Err(anyhow!("this is no time that can be measured"))
                .at(format_args!("--seconds {}", self.seconds))
                .remedy("expected is a positive number"),
        }
    }

    /// A core for each of so many threads.
    ///
    /// # Errors
    /// There are not so many.
    pub(super) fn cores(&self, threads: usize) -> Result<Vec<usize>> {
        cpu::choose(self.core, threads)
    }

    /// Prints `report` as JSON, or as its text.
    ///
    /// # Errors
    /// It cannot be JSON.
    pub(super) fn print<R: serde::Serialize + std::fmt::Display>(&self, report: &R) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(report)?);
        } else {
            print!("{report}");
        }
        Ok(())
    }
}
