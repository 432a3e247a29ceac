//! A progress bar on standard error, for people only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// See the module's head.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar, if `wanted` and somebody is looking.
    pub fn new(wanted: bool) -> Self {
        let bar = ProgressBar::new(0);
        let seen = wanted && std::io::stderr().is_terminal();
        bar.set_draw_target(if seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        Self(bar)
    }

    /// Starts a piece of work, of known or unknown length.
    pub fn start(&self, what: &'static str, length: Option<u64>) {
        let template = if length.is_some() {
            "{msg:20} {wide_bar} {human_pos}/{human_len} {eta}"
        } else {
            "{msg:20} {spinner}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.set_message(what);
        self.0.set_length(length.unwrap_or(0));
        self.0.set_position(0);
        self.0.tick();
    }

    /// So much is done.
    pub fn at(&self, done: u64) {
        self.0.set_position(done);
    }

    /// All is done: the bar goes away.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
