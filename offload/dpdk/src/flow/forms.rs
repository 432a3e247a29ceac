//! Forms of the rules that were created of late, and what was decided over them: a rule of a known form is not translated and
//! lowered again. See [`crate::rule::form`].

use crate::nic::rules::{Shape, Values};
use crate::rule::action::RuleAction;
use crate::rule::form::Form;
use crate::rule::pattern::Item;
use std::sync::Arc;

/// Forms that are kept: applications have few at a time, and each is compared with.
const KEPT: usize = 16;

/// What a rule asks for besides its pattern.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) rank: u16,
    /// Receive queues of the port.
    pub(super) queues: u16,
    pub(super) actions: &'a [RuleAction],
}

struct Known {
    form: Form,
    rank: u16,
    queues: u16,
    actions: Vec<RuleAction>,
    shape: Arc<Shape>,
}

/// The forms, the one that was met last first.
#[derive(Default)]
pub(crate) struct Forms(Vec<Known>);

impl Forms {
    /// Shape and values of a rule, if it is of a known form.
    pub(super) fn find(&mut self, items: &[Item<'_>], asked: Asked<'_>) -> Option<(&Arc<Shape>, Values)> {
        let find = |known: &Known| {
            let same =
                known.rank == asked.rank && known.queues == asked.queues && known.actions == asked.actions;
            if same { known.form.read(items) } else { None }
        };
        let (n, values) = self.0.iter().enumerate().find_map(|(n, known)| Some((n, find(known)?)))?;
        self.0.swap(0, n);
        self.0.first().map(|known| (&known.shape, values))
    }

    /// Notes what was decided over a rule of group 0 that does not jump, and that the first table takes which is asked.
    pub(super) fn learn(&mut self, items: &[Item<'_>], asked: Asked<'_>, shape: &Arc<Shape>, values: &[u64]) {
        if !asked.actions.iter().all(goes_by_the_form) {
            return;
        }
        let Some(form) = Form::of(items, shape.words(), values) else { return };
        let (rank, queues, actions) = (asked.rank, asked.queues, asked.actions.to_vec());
        self.0.truncate(KEPT - 1);
        self.0.insert(0, Known { form, rank, queues, actions, shape: Arc::clone(shape) });
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// True for an action whose lowering does not depend on a value of the match. One that sets what is there already is left out
/// of an entry.
fn goes_by_the_form(action: &RuleAction) -> bool {
    use RuleAction::*;
    matches!(
        action,
        Void | Count
            | Drop
            | Output(_)
            | Mark(_)
            | Queue(_)
            | Rss(_)
            | PushVlan(_)
            | SetVlanVid(_)
            | SetVlanPcp(_)
            | PopVlan
    )
}
