//! rte_flow: what DPDK calls to create, destroy and query rules.
//!
//! A creation is decided here, in the caller's thread, from memory: the rule is read and translated, lowered once to see whether
//! the NIC's tables take it, given room, and handed to the service thread, which brings it into the NIC. Every refusal fills
//! `struct rte_flow_error`; its message stays until the same thread's next refusal.

mod forms;
mod index;
mod read;
pub mod table;

use crate::ethdev::{Adapter, adapter};
use crate::guard::guarded;
use crate::nic::Desk;
use crate::nic::delivery::Held;
use crate::nic::room::Taking;
use crate::nic::rules::{Rule, Shape, values};
use crate::rule::action::{FlowActions, to_actions};
use crate::rule::pattern::to_match;
use crate::rule::{Culprit, FIRST_DELIVERY, Refusal, refusal};
use crate::sys;
use flowlift_driver::nic::Stage;
use flowlift_flow::{Action, Flow};
use flowlift_offload::lower::{Excluded, RecircStages, lower_ranked};
use flowlift_offload::recirc::{Hop, RecircGraph};
use flowlift_offload::refusal::{Cause, Limit, RecircCause};
use forms::Asked;
use std::cell::RefCell;
use std::ffi::{CString, c_int, c_void};
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use table::{FlowTable, Handle, NotAdded};

/// The operations.
pub(crate) static OPS: sys::rte_flow_ops = sys::rte_flow_ops {
    validate: Some(validate),
    create: Some(create),
    destroy: Some(destroy),
    flush: Some(flush),
    query: Some(query),
    isolate: Some(isolate),
    ..NO_OPS
};

/// No operation at all.
// SAFETY: every field is an optional function pointer, and zero is none.
const NO_OPS: sys::rte_flow_ops = unsafe { std::mem::zeroed() };

thread_local! {
    /// The message of this thread's last refusal: `rte_flow_error` only points at it.
    static MESSAGE: RefCell<CString> = RefCell::default();
}

/// A rule as the application gives it: pointers that `rte_flow_error` points back at.
#[derive(Clone, Copy)]
struct Given {
    attr: *const sys::rte_flow_attr,
    items: *const sys::rte_flow_item,
    actions: *const sys::rte_flow_action,
}

impl Given {
    const NOTHING: Self = Self { attr: null(), items: null(), actions: null() };

    /// Type and cause of an error for what stands in the way.
    fn place(&self, culprit: Culprit, handle: *const c_void) -> (sys::rte_flow_error_type, *const c_void) {
        let item = |n: usize| self.items.wrapping_add(n);
        let action = |n: usize| self.actions.wrapping_add(n);
        let part = |n: usize, f: fn(&sys::rte_flow_item) -> *const c_void| {
            // SAFETY: a culprit's number is one of an item or action that was read before, so that it is within the list.
            unsafe { item(n).as_ref() }.map_or(null(), f)
        };
        match culprit {
            Culprit::Unspecified => (sys::RTE_FLOW_ERROR_TYPE_UNSPECIFIED, null()),
            Culprit::Handle => (sys::RTE_FLOW_ERROR_TYPE_HANDLE, handle),
            Culprit::Group => (sys::RTE_FLOW_ERROR_TYPE_ATTR_GROUP, self.attr.cast()),
            Culprit::Priority => (sys::RTE_FLOW_ERROR_TYPE_ATTR_PRIORITY, self.attr.cast()),
            Culprit::Ingress => (sys::RTE_FLOW_ERROR_TYPE_ATTR_INGRESS, self.attr.cast()),
            Culprit::Egress => (sys::RTE_FLOW_ERROR_TYPE_ATTR_EGRESS, self.attr.cast()),
            Culprit::Transfer => (sys::RTE_FLOW_ERROR_TYPE_ATTR_TRANSFER, self.attr.cast()),
            Culprit::Item(n) => (sys::RTE_FLOW_ERROR_TYPE_ITEM, item(n).cast()),
            Culprit::ItemSpec(n) => (sys::RTE_FLOW_ERROR_TYPE_ITEM_SPEC, part(n, |i| i.spec)),
            Culprit::ItemLast(n) => (sys::RTE_FLOW_ERROR_TYPE_ITEM_LAST, part(n, |i| i.last)),
            Culprit::ItemMask(n) => (sys::RTE_FLOW_ERROR_TYPE_ITEM_MASK, part(n, |i| i.mask)),
            Culprit::Action(n) => (sys::RTE_FLOW_ERROR_TYPE_ACTION, action(n).cast()),
            // SAFETY: as above.
            Culprit::ActionConf(n) => (
                sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF,
                unsafe { action(n).as_ref() }.map_or(null(), |a| a.conf),
            ),
        }
    }
}

/// Fills the application's error; gives `-errno`, and sets `rte_errno`.
///
/// # Safety
/// `error` is null or a place for an error.
unsafe fn refuse(
    error: *mut sys::rte_flow_error,
    (kind, cause): (sys::rte_flow_error_type, *const c_void),
    refusal: Refusal,
) -> c_int {
    let text = CString::new(refusal.message.replace('\0', "?")).unwrap_or_default();
    let message = MESSAGE.try_with(|message| {
        let mut message = message.borrow_mut();
        *message = text;
        message.as_ptr()
    });
    let message = message.unwrap_or(c"refused".as_ptr());
    // SAFETY: by the caller; the message is this thread's, and stays until its next one.
    unsafe { sys::rte_flow_error_set(error, refusal.errno, kind, cause, message) }
}

/// Runs an operation; a refusal fills the error.
///
/// # Safety
/// DPDK's call: `dev` a port of this driver, `error` null or a place for an error, `given` as the application gave it.
unsafe fn operate<T>(
    what: &'static str,
    dev: *mut sys::rte_eth_dev,
    error: *mut sys::rte_flow_error,
    (given, handle): (Given, *const c_void),
    failed: impl Fn(c_int) -> T,
    body: impl FnOnce(&Adapter) -> Result<T, Refusal>,
) -> T {
    let bug = failed(-crate::EIO.abs());
    guarded(what, bug, || {
        // SAFETY: by the caller.
        let result = match unsafe { adapter(dev) } {
            Some(a) => body(a),
            None => Err(Refusal::at_all(refusal::GONE, "the port is closed")),
        };
        result.unwrap_or_else(|refusal| {
            let place = given.place(refusal.culprit, handle);
            // SAFETY: by the caller.
            failed(unsafe { refuse(error, place, refusal) })
        })
    })
}

/// Groups as the planner will see them: one that no rule jumps to yet is taken to be reached from group 0.
struct Groups<'a>(&'a RecircGraph);

impl RecircStages for Groups<'_> {
    fn stage(&self, recirc_id: u32) -> Result<Stage, RecircCause> {
        match self.0.stage(recirc_id) {
            Err(RecircCause::NoParent) => Ok(Stage(1)),
            known => known,
        }
    }
}

/// The hop of a rule that jumps.
fn jump(actions: &[Action], from: u32) -> Option<Hop> {
    match actions.last() {
        Some(Action::Recirc(to)) if *to < FIRST_DELIVERY => Some(Hop { from, to: *to }),
        _ => None,
    }
}

struct Ports<'a>(&'a Adapter);

impl read::Ports for Ports<'_> {
    fn own(&self) -> u32 {
        self.0.port.nic_port.0.into()
    }
    fn of(&self, dpdk: u32) -> Option<u32> {
        if dpdk == u32::from(self.0.port.id) {
            return Some(self.own());
        }
        self.0.nic.port_of(dpdk).map(|p| p.0.into())
    }
}

/// Decides over a rule, and takes what it needs: room, and its jump. [`give_back`] undoes that.
///
/// # Safety
/// As for [`operate`].
unsafe fn decide(a: &Adapter, given: Given, flows: &mut FlowTable) -> Result<Arc<Rule>, Refusal> {
    // SAFETY: by the caller.
    let Some(attr) = (unsafe { given.attr.as_ref() }) else {
        return Err(Refusal::invalid(Culprit::Unspecified, "there are no attributes"));
    };
    if a.nic.is_gone() {
        return Err(Refusal::at_all(refusal::GONE, "the NIC is gone"));
    }
    if attr.egress() != 0 {
        return Err(Refusal::unsupported(
            Culprit::Egress,
            "packets that the application sends pass no tables",
        ));
    }
    if attr.ingress() == 0 && attr.transfer() == 0 {
        return Err(Refusal::invalid(
            Culprit::Ingress,
            "neither ingress nor transfer: no packet would be matched",
        ));
    }
    if attr.group >= FIRST_DELIVERY {
        return Err(Refusal::unsupported(Culprit::Group, format!("groups are 0 to {}", FIRST_DELIVERY - 1)));
    }
    let Ok(rank) = u16::try_from(attr.priority) else {
        return Err(Refusal::unsupported(Culprit::Priority, "priorities are 0 to 65535"));
    };
    // SAFETY: by the caller.
    let (items, actions) = unsafe { (read::items(given.items)?, read::actions(given.actions, &Ports(a))?) };
    let queues = a.rx_queues();
    let asked = Asked { rank, queues, actions: &actions };
    if attr.group == 0
        && let Some((shape, values)) = flows.forms.find(&items, asked)
    {
        let print = shape.print_of(&values, a.nic.prints());
        flows.index.fetch(print);
        if a.nic.desk().room.take_again(shape.room) {
            return Ok(Arc::new(Rule::new(Arc::clone(shape), values, print)));
        }
    }
    let (matching, mut places) = to_match(&items, a.port.nic_port.0.into(), attr.group)?;
    let FlowActions { actions: list, delivery, count } =
        to_actions(&actions, &matching, queues, &mut places)?;
    let jump = jump(&list, attr.group);
    let mut flow = Flow { ufid: None, matching, actions: list };
    let taken = take_room(a, &mut a.nic.desk(), &flow, rank, jump);
    let (room, first) = taken.map_err(|r| Refusal::of_planner(&r, &places))?;
    let delivery = match delivery.map(|delivery| Held::take(a.nic.deliveries(), &delivery)) {
        Some(None) => {
            leave(&mut a.nic.desk(), room, jump);
            return Err(Refusal::at_all(refusal::NO_ROOM, "too many different marks and queues"));
        }
        held => held.flatten(),
    };
    if let (Some(delivery), Some(last)) = (&delivery, flow.actions.last_mut()) {
        *last = Action::Recirc(delivery.id());
    }
    let prints = a.nic.prints();
    let shape = Arc::new(Shape::new(&flow.matching, (flow.actions, delivery), rank, count, room, prints));
    let values = values(&flow.matching);
    if first && attr.group == 0 && jump.is_none() {
        flows.forms.learn(&items, asked, &shape, &values);
    }
    let print = shape.print_of(&values, prints);
    Ok(Arc::new(Rule::new(shape, values, print)))
}

/// Gives back what a rule took that was never put.
fn give_back(a: &Adapter, shape: &Shape) {
    leave(&mut a.nic.desk(), shape.room, shape.jump());
}

/// Room in the first table that takes the flow and is not full; and whether it is the first that takes it at all.
fn take_room(
    a: &Adapter,
    desk: &mut Desk,
    flow: &Flow,
    rank: u16,
    jump: Option<Hop>,
) -> Result<(Taking, bool), flowlift_offload::refusal::Refusal> {
    let pipeline = a.nic.pipeline();
    if let Some(jump) = jump {
        desk.graph.add(jump);
        desk.graph.update();
    }
    let mut excluded = Excluded::default();
    let taken = loop {
        let plan = match lower_ranked(pipeline, &Groups(&desk.graph), flow, rank, excluded) {
            Ok(plan) => plan,
            Err(refusal) => break Err(refusal),
        };
        if let Some(room) = desk.room.take(&plan) {
            break Ok((room, excluded == Excluded::default()));
        }
        if !excluded.insert(pipeline, plan.table) {
            break Err(flowlift_offload::refusal::Refusal::of_nic(Cause::Limit(Limit::Full)));
        }
    };
    if taken.is_err() {
        jump_no_more(desk, jump);
    }
    taken
}

fn jump_no_more(desk: &mut Desk, jump: Option<Hop>) {
    if let Some(jump) = jump {
        desk.graph.remove(jump);
        desk.graph.update();
    }
}

/// Gives room and jump back.
fn leave(desk: &mut Desk, room: Taking, jump: Option<Hop>) {
    desk.room.give(room);
    jump_no_more(desk, jump);
}

/// Gives back what a rule took, and has it leave the hardware.
pub(crate) fn let_go(a: &Adapter, rule: Arc<Rule>) {
    give_back(a, &rule.shape);
    a.nic.remove(rule);
}

unsafe extern "C" fn validate(
    dev: *mut sys::rte_eth_dev,
    attr: *const sys::rte_flow_attr,
    items: *const sys::rte_flow_item,
    actions: *const sys::rte_flow_action,
    error: *mut sys::rte_flow_error,
) -> c_int {
    let given = Given { attr, items, actions };
    // SAFETY: DPDK hands on what the application gave, as rte_flow demands it.
    unsafe {
        operate(
            "flow validate",
            dev,
            error,
            (given, null()),
            |e| e,
            |a| {
                let rule = decide(a, given, &mut a.flows())?;
                give_back(a, &rule.shape);
                Ok(0)
            },
        )
    }
}

unsafe extern "C" fn create(
    dev: *mut sys::rte_eth_dev,
    attr: *const sys::rte_flow_attr,
    items: *const sys::rte_flow_item,
    actions: *const sys::rte_flow_action,
    error: *mut sys::rte_flow_error,
) -> *mut sys::rte_flow {
    let given = Given { attr, items, actions };
    // SAFETY: as in `validate`.
    unsafe {
        operate(
            "flow create",
            dev,
            error,
            (given, null()),
            |_| std::ptr::null_mut(),
            |a| {
                let mut flows = a.flows();
                let rule = decide(a, given, &mut flows)?;
                let handle = flows.insert(&rule).map_err(|why| {
                    give_back(a, &rule.shape);
                    match why {
                        NotAdded::Exists => {
                            let message = "a rule with the same pattern and priority is there";
                            Refusal::at_all(refusal::EXISTS, message)
                        }
                        NotAdded::Full => Refusal::at_all(refusal::NO_ROOM, "too many rules"),
                    }
                })?;
                // With the rules still held: whoever destroys this one does so after it was put.
                a.nic.put(rule);
                Ok(std::ptr::without_provenance_mut(handle.0 as usize))
            },
        )
    }
}

/// The handle that a pointer is.
fn handle_of(flow: *const sys::rte_flow) -> Handle {
    Handle(flow.addr() as u64)
}

fn no_rule() -> Refusal {
    Refusal::invalid(Culprit::Handle, "no rule of this port has this handle")
}

unsafe extern "C" fn destroy(
    dev: *mut sys::rte_eth_dev,
    flow: *mut sys::rte_flow,
    error: *mut sys::rte_flow_error,
) -> c_int {
    // SAFETY: as in `validate`; the handle is only compared.
    unsafe {
        operate(
            "flow destroy",
            dev,
            error,
            (Given::NOTHING, flow.cast_const().cast()),
            |e| e,
            |a| {
                let mut flows = a.flows();
                let rule = flows.take(handle_of(flow)).ok_or_else(no_rule)?;
                let_go(a, rule);
                Ok(0)
            },
        )
    }
}

unsafe extern "C" fn flush(dev: *mut sys::rte_eth_dev, error: *mut sys::rte_flow_error) -> c_int {
    // SAFETY: as in `validate`.
    unsafe {
        operate(
            "flow flush",
            dev,
            error,
            (Given::NOTHING, null()),
            |e| e,
            |a| {
                a.flush();
                Ok(0)
            },
        )
    }
}

unsafe extern "C" fn query(
    dev: *mut sys::rte_eth_dev,
    flow: *mut sys::rte_flow,
    action: *const sys::rte_flow_action,
    data: *mut c_void,
    error: *mut sys::rte_flow_error,
) -> c_int {
    let given = Given { actions: action, ..Given::NOTHING };
    // SAFETY: as in `validate`; for COUNT, `data` is a place for its counters.
    unsafe {
        operate(
            "flow query",
            dev,
            error,
            (given, flow.cast_const().cast()),
            |e| e,
            |a| {
                let rule = Arc::clone(a.flows().get(handle_of(flow)).ok_or_else(no_rule)?);
                let asked = action.as_ref().map(|action| action.type_);
                if asked != Some(sys::RTE_FLOW_ACTION_TYPE_COUNT) {
                    return Err(Refusal::unsupported(Culprit::Action(0), "only COUNT can be queried"));
                }
                if !rule.shape.count {
                    return Err(Refusal::invalid(Culprit::Action(0), "the rule has no COUNT"));
                }
                let Some(out) = data.cast::<sys::rte_flow_query_count>().as_mut() else {
                    return Err(Refusal::invalid(Culprit::Unspecified, "there is no place for the counters"));
                };
                let (hits, bytes) = a.nic.query(&rule, out.reset() != 0);
                out.set_hits_set(1);
                out.set_bytes_set(1);
                (out.hits, out.bytes) = (hits, bytes);
                Ok(0)
            },
        )
    }
}

unsafe extern "C" fn isolate(
    dev: *mut sys::rte_eth_dev,
    on: c_int,
    error: *mut sys::rte_flow_error,
) -> c_int {
    // SAFETY: as in `validate`.
    unsafe {
        operate(
            "flow isolate",
            dev,
            error,
            (Given::NOTHING, null()),
            |e| e,
            |a| {
                a.port.isolated.store(on != 0, Ordering::Relaxed);
                Ok(0)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_points_at_what_stands_in_the_way() {
        // SAFETY: zero is a value of each of them.
        let (attr, mut items, mut actions): (
            sys::rte_flow_attr,
            [sys::rte_flow_item; 3],
            [sys::rte_flow_action; 3],
        ) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        let parts = [1u8, 2, 3, 4];
        let part = |n: usize| (&raw const parts[n]).cast::<c_void>();
        (items[1].spec, items[1].last, items[1].mask) = (part(0), part(1), part(2));
        actions[2].conf = part(3);
        let given = Given { attr: &attr, items: items.as_ptr(), actions: actions.as_ptr() };
        let handle = part(0).wrapping_add(77);
        let attr = (&raw const attr).cast();
        for (culprit, kind, cause) in [
            (Culprit::Unspecified, sys::RTE_FLOW_ERROR_TYPE_UNSPECIFIED, null()),
            (Culprit::Handle, sys::RTE_FLOW_ERROR_TYPE_HANDLE, handle),
            (Culprit::Group, sys::RTE_FLOW_ERROR_TYPE_ATTR_GROUP, attr),
            (Culprit::Priority, sys::RTE_FLOW_ERROR_TYPE_ATTR_PRIORITY, attr),
            (Culprit::Ingress, sys::RTE_FLOW_ERROR_TYPE_ATTR_INGRESS, attr),
            (Culprit::Egress, sys::RTE_FLOW_ERROR_TYPE_ATTR_EGRESS, attr),
            (Culprit::Transfer, sys::RTE_FLOW_ERROR_TYPE_ATTR_TRANSFER, attr),
            (Culprit::Item(2), sys::RTE_FLOW_ERROR_TYPE_ITEM, (&raw const items[2]).cast()),
            (Culprit::ItemSpec(1), sys::RTE_FLOW_ERROR_TYPE_ITEM_SPEC, part(0)),
            (Culprit::ItemLast(1), sys::RTE_FLOW_ERROR_TYPE_ITEM_LAST, part(1)),
            (Culprit::ItemMask(1), sys::RTE_FLOW_ERROR_TYPE_ITEM_MASK, part(2)),
            (Culprit::Action(1), sys::RTE_FLOW_ERROR_TYPE_ACTION, (&raw const actions[1]).cast()),
            (Culprit::ActionConf(2), sys::RTE_FLOW_ERROR_TYPE_ACTION_CONF, part(3)),
        ] {
            assert_eq!(given.place(culprit, handle), (kind, cause), "{culprit:?}");
        }
        // A rule without lists has nothing to point at, but an address in no list is never read.
        assert_eq!(Given::NOTHING.place(Culprit::ItemSpec(0), null()).1, null());
    }
}
