//! `flowlift completions` and `flowlift man`: what is made from the command line's own definitions.

use super::{Outcome, print_text};
use crate::cli::{CompletionsArgs, ManArgs, Program};
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::io::Write;

/// Prints a completion script.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(args: &CompletionsArgs) -> Result<Outcome> {
    // Into memory first: the generator knows no errors, and a reader may go away.
    let mut script = Vec::new();
    let mut command = args.program.command_line();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    print_text(|out| Ok(out.write_all(&script)?))?;
    Ok(Outcome::Good)
}

/// Writes manual pages: `flowlift.1`, `flowlift-nic-bind.1`, `flowlift-sim.1` and so on, or the first alone to standard output.
///
/// # Errors
/// The folder or standard output cannot be written.
pub fn man(args: &ManArgs) -> Result<Outcome> {
    // `help` says what the pages say.
    let commands = |program: &Program| program.command_line().disable_help_subcommand(true);
    match &args.folder {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            for program in Program::value_variants() {
                clap_mangen::generate_to(commands(program), folder)
                    .with_context(|| format!("cannot write manual pages to {}", folder.display()))?;
            }
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(commands(&Program::Flowlift)).render(&mut page)?;
            print_text(|out| Ok(out.write_all(&page)?))?;
        }
    }
    Ok(Outcome::Good)
}
