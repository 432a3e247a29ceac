//! Each lie on its own, and what the driver says to it.

use flowlift_driver::nic::NicState;
use flowlift_tests::hostile::{DEADLINE, Ring, Story, Unasked, View, Will, drive, received};

/// Steps after which a device is up and lies begin.
const UP: u32 = 60;

#[track_caller]
fn says(story: &Story, part: &str) {
    assert!(story.says(part), "no error says {part:?}: {story:#?}");
}

/// Registers that read as all-ones from a step on.
struct AllOnes {
    from: u32,
    register: Option<u64>,
}

impl Will for AllOnes {
    fn register(&mut self, view: &View, offset: u64, value: u32) -> u32 {
        let lies = view.steps >= self.from && self.register.is_none_or(|r| r == offset);
        if lies { u32::MAX } else { value }
    }
}

#[test]
fn all_ones_everywhere_are_a_device_that_is_gone() {
    let story = drive(AllOnes { from: 0, register: None }, 10);
    says(&story, "the NIC is gone");
    let story = drive(AllOnes { from: UP, register: None }, 200);
    assert_eq!(story.state, Some(NicState::Gone), "{story:?}");
    says(&story, "the NIC is gone");
}

#[test]
fn all_ones_in_one_register_are_a_lie_about_it() {
    for (register, name) in
        [(0x50, "NUM_PORTS"), (0x54, "NUM_SLOWQ"), (0x64, "CAPS_BYTES"), (0x70, "MAX_SLOTS")]
    {
        let story = drive(AllOnes { from: 0, register: Some(register) }, 10);
        assert!(!story.opened);
        says(&story, &format!("{name} is 4294967295"));
    }
    let story = drive(AllOnes { from: UP, register: Some(0x120) }, 200);
    says(&story, "its admin ring index is 0xffffffff");
}

/// A capability blob with a byte of its own, and the CRC put right.
struct Capabilities(usize, u8);

impl Will for Capabilities {
    fn write(&mut self, _: &View, _: u64, data: &mut [u8]) {
        if data.starts_with(b"FLCP") && data.len() > self.0 {
            data[self.0] = self.1;
            data[28..32].fill(0);
            let crc = flowlift_sim::crc32c(data);
            data[28..32].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

#[test]
fn impossible_capabilities_are_named() {
    for (at, value, what) in [
        (0, 0, "magic"),
        (12, 9, "disagree"),
        (34, 3, "table 0: kind 3 with"),
        (35, 1, "table 0: stage 1 of 1"),
        (44, 136, "table 0: a key of 136 bytes"),
        (53, 1, "a miss goes to table"),
        (96 + 4, 4, "at bit 4"),
        (96 + 32 + 4, 8, "overlaps another"),
    ] {
        let story = drive(Capabilities(at, value), 10);
        assert!(!story.opened, "byte {at} = {value}");
        says(&story, "is not to be trusted");
        says(&story, what);
    }
}

/// Writes elements that nobody asked for, in each step.
struct Flood<F>(F);

impl<F: FnMut(&mut Unasked<'_>) + Send + 'static> Will for Flood<F> {
    fn step(&mut self, to: &mut Unasked<'_>) {
        if to.steps() >= UP {
            self.0(to);
        }
    }
}

#[test]
fn completions_for_unknown_cookies_are_counted_and_end_in_distrust() {
    let mut completion = [0; 64];
    completion[..8].copy_from_slice(&0x1234_5678_9abc_u64.to_le_bytes());
    let story = drive(Flood(move |to: &mut Unasked<'_>| to.element(Ring::Completions, &completion)), 400);
    says(&story, "completion of no command");
    assert!(story.stats.impossible > 64, "{story:?}");
}

/// Every command's completion is that of a command which was answered long ago, and half a ring of such comes on top.
struct Answered;

impl Will for Answered {
    fn write(&mut self, view: &View, iova: u64, data: &mut [u8]) {
        if view.steps >= UP && view.place(iova) == Some((Ring::Completions, 0)) {
            data[..8].fill(0);
        }
    }
    fn step(&mut self, to: &mut Unasked<'_>) {
        if to.steps() >= UP {
            (0..to.elements(Ring::Completions) / 2).for_each(|_| to.element(Ring::Completions, &[0; 64]));
        }
    }
}

#[test]
fn an_endless_completion_ring_does_not_keep_the_driver_and_is_no_progress() {
    let story = drive(Answered, 1200);
    assert!(story.stats.duplicates > 1000, "{story:?}");
    says(&story, &format!("no completion for {DEADLINE:?}"));
}

#[test]
fn an_endless_event_ring_is_read_one_round_at_a_time() {
    let mut event = [0; 32];
    // About a table that there is not.
    (event[0], event[2]) = (2, 99);
    let story =
        drive(Flood(move |to: &mut Unasked<'_>| (0..16).for_each(|_| to.element(Ring::Events, &event))), 200);
    says(&story, "event about nothing");
}

/// Every receive completion is of one frame, which goes on.
struct Endless;

impl Will for Endless {
    fn write(&mut self, view: &View, iova: u64, data: &mut [u8]) {
        if view.steps >= UP && view.place(iova) == Some((Ring::Received, 0)) {
            let buffer = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
            data.copy_from_slice(&received(buffer, 60, 9000)[..data.len()]);
            data[14] = 1;
        }
    }
}

#[test]
fn a_frame_that_goes_on_for_ever_is_a_lie() {
    says(&drive(Endless, 400), "a frame that fills the whole receive ring and goes on");
}

#[test]
fn lengths_past_the_buffer_are_named() {
    for (len, frame, what) in [
        (2049, 2049, "an impossible length"),
        (u32::MAX, 60, "an impossible length"),
        (0, 60, "an impossible length"),
        (60, 61, "a frame length that is not the sum"),
        (60, u32::MAX, "impossible flags or frame length"),
    ] {
        let long = Flood(move |to: &mut Unasked<'_>| {
            to.element(Ring::Received, &received(to.next_index(Ring::Received), len, frame));
        });
        let story = drive(long, 200);
        says(&story, what);
    }
    let story = drive(Flood(|to: &mut Unasked<'_>| to.sent(0x7777)), 200);
    says(&story, "transmit index 0x7777 outside");
}

/// Counter page records whose packets go down.
#[derive(Default)]
struct Backwards(u64);

impl Will for Backwards {
    fn write(&mut self, view: &View, _: u64, data: &mut [u8]) {
        // A record of the counter page is the only write of 32 bytes outside the rings.
        if data.len() == 32 && view.steps >= UP {
            self.0 += 1;
            data[..8].copy_from_slice(&(u64::MAX / 2 - self.0).to_le_bytes());
        }
    }
}

#[test]
fn counters_that_run_backwards_are_named() {
    let story = drive(Backwards::default(), 600);
    says(&story, "of table 0 ran backwards");
    assert!(story.stats.impossible > 64, "{story:?}");
}
