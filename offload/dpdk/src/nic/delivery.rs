//! What becomes of packets that rules give to the host: the recirculation ID that such a packet bears names a [`Delivery`].
//!
//! A packet may still be on its way when its rule is gone. So that it never gets another rule's mark, an ID is a place and a
//! generation: a place that is used again has another ID, and a stale one names nothing.

use crate::rule::FIRST_DELIVERY;
use crate::rule::action::Delivery;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Bits of an ID that say the place; the rest below [`FIRST_DELIVERY`]'s bit is the generation.
const PLACE_BITS: u32 = 21;
const PLACES: usize = 1 << PLACE_BITS;
const GENERATIONS: u32 = 1 << (31 - PLACE_BITS);

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    users: u32,
    delivery: Option<Arc<Delivery>>,
}

/// All deliveries of a NIC's rules.
#[derive(Debug, Default)]
pub struct Deliveries {
    places: Vec<Place>,
    free: std::collections::VecDeque<u32>,
    by_value: HashMap<Arc<Delivery>, u32>,
}

fn split(id: u32) -> Option<(usize, u32)> {
    let bits = id.checked_sub(FIRST_DELIVERY)?;
    Some(((bits & (PLACES as u32 - 1)) as usize, bits >> PLACE_BITS))
}

impl Deliveries {
    /// The ID of a delivery, which all who take the same one share; `None` if there are too many different ones.
    pub fn take(&mut self, delivery: &Delivery) -> Option<u32> {
        if let Some(id) = self.by_value.get(delivery) {
            let (place, _) = split(*id)?;
            self.places.get_mut(place)?.users += 1;
            return Some(*id);
        }
        let place = match self.free.pop_front() {
            Some(place) => place,
            None if self.places.len() < PLACES => {
                self.places.push(Place::default());
                u32::try_from(self.places.len() - 1).ok()?
            }
            None => return None,
        };
        let value = Arc::new(delivery.clone());
        let slot = self.places.get_mut(place as usize)?;
        (slot.users, slot.delivery) = (1, Some(Arc::clone(&value)));
        let id = FIRST_DELIVERY | slot.generation << PLACE_BITS | place;
        self.by_value.insert(value, id);
        Some(id)
    }

    /// Somebody who took the ID uses it no more.
    pub fn give(&mut self, id: u32) {
        let Some((at, generation)) = split(id) else { return };
        let Some(slot) = self.places.get_mut(at).filter(|p| p.generation == generation && p.users > 0) else {
            return;
        };
        slot.users -= 1;
        if slot.users == 0 {
            if let Some(value) = slot.delivery.take() {
                self.by_value.remove(&value);
            }
            slot.generation = (generation + 1) % GENERATIONS;
            // Last in, last out: a place is left alone for as long as can be.
            self.free.push_back(at as u32);
        }
    }

    /// The delivery that an ID names now.
    pub fn get(&self, id: u32) -> Option<&Arc<Delivery>> {
        let (at, generation) = split(id)?;
        self.places.get(at).filter(|p| p.generation == generation)?.delivery.as_ref()
    }
}

/// The use of a delivery's ID, until it is dropped.
#[derive(Debug)]
pub struct Held {
    id: u32,
    all: Arc<RwLock<Deliveries>>,
}

impl Held {
    /// Takes the ID of a delivery; `None` if there are too many different ones.
    pub fn take(all: &Arc<RwLock<Deliveries>>, delivery: &Delivery) -> Option<Self> {
        let id = all.write().unwrap_or_else(PoisonError::into_inner).take(delivery)?;
        Some(Self { id, all: Arc::clone(all) })
    }

    /// The ID.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).give(self.id);
    }
}

/// A queue for a frame: the same one for all frames of a flow. Not the NIC's hash, which a slow packet does not bring along.
pub fn spread(frame: &[u8], queues: usize) -> usize {
    if queues <= 1 {
        return 0;
    }
    // Addresses and what follows the Ethernet header up to the transport ports: of IPv4 the bytes 26 to 38, of IPv6 22 to
    // 58. Bytes that differ within a flow (lengths, TTL, checksums) are left out.
    let ty = frame.get(12..14);
    let part = match ty {
        Some([0x08, 0x00]) => frame.get(26..38),
        Some([0x86, 0xdd]) => frame.get(22..58),
        _ => None,
    };
    let bytes = part.or(frame.get(..14)).unwrap_or(frame);
    let hash =
        bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    ((hash >> 32) as usize) % queues
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_deliveries_share_an_id_and_a_stale_id_names_nothing() {
        let mut all = Deliveries::default();
        let mark = |n| Delivery { mark: Some(n), flag: false, queues: vec![] };
        let first = all.take(&mark(1)).unwrap();
        assert_eq!(all.take(&mark(1)), Some(first));
        let second = all.take(&mark(2)).unwrap();
        assert_ne!(first, second);
        all.give(first);
        assert_eq!(all.get(first).unwrap().mark, Some(1));
        all.give(first);
        all.give(first);
        assert!(all.get(first).is_none());
        let third = all.take(&mark(3)).unwrap();
        assert_ne!(third, first, "the same place, another generation");
        assert!(all.get(first).is_none());
        assert_eq!(all.get(third).unwrap().mark, Some(3));
        assert_eq!(all.get(second).unwrap().mark, Some(2));
        assert!(all.get(5).is_none());
    }

    #[test]
    fn a_flow_keeps_its_queue_and_flows_use_all() {
        let mut frame = vec![0; 60];
        (frame[12], frame[13]) = (8, 0);
        let mut seen = [0; 4];
        for n in 0..=255 {
            frame[29] = n;
            let queue = spread(&frame, 4);
            frame[22] = frame[22].wrapping_add(1);
            assert_eq!(spread(&frame, 4), queue, "the TTL does not matter");
            seen[queue] += 1;
        }
        assert!(seen.iter().all(|n| *n > 20), "{seen:?}");
        assert_eq!(spread(&[], 4), spread(&[], 4));
    }
}
