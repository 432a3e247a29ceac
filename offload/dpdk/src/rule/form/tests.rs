use super::*;
use crate::nic::room::Taking;
use crate::nic::rules::{Prints, Shape, values};
use crate::rule::pattern::to_match;
use flowlift_driver::nic::TableId;
use flowlift_flow::Match;

/// A xorshift: the same patterns in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// An item's kind, spec and mask.
type Owned = (ItemKind, Option<Vec<u8>>, Option<Vec<u8>>);

fn items(owned: &[Owned]) -> Vec<Item<'_>> {
    owned
        .iter()
        .map(|(kind, spec, mask)| Item {
            kind: *kind,
            spec: spec.as_deref(),
            last: None,
            mask: mask.as_deref(),
        })
        .collect()
}

fn translate(owned: &[Owned]) -> Option<Match> {
    to_match(&items(owned), 1, 0).ok().map(|(m, _)| m)
}

/// A pattern that is often one that a flow can say: headers in order, whole fields masked at random.
fn pattern(random: &mut Random) -> Vec<Owned> {
    use ItemKind::*;
    const CHAINS: [&[ItemKind]; 8] = [
        &[Eth, Ipv4],
        &[Eth, Ipv4, Udp],
        &[Eth, Vlan, Ipv4, Tcp],
        &[Eth, Vlan, Vlan, Ipv6, Sctp],
        &[Eth, Ipv6, Icmp6],
        &[Eth, Ipv4, Void, Icmp],
        &[Ipv4, Tcp],
        &[Eth, Arp],
    ];
    let chain = CHAINS[random.below(CHAINS.len() as u64) as usize];
    chain.iter().map(|kind| item(*kind, random)).collect()
}

fn item(kind: ItemKind, random: &mut Random) -> Owned {
    if kind.size() == 0 || random.below(4) == 0 {
        return (kind, None, None);
    }
    let spec = (0..kind.size()).map(|_| random.next() as u8).collect();
    if random.below(6) == 0 {
        return (kind, Some(spec), None);
    }
    let mut mask = vec![0; kind.size()];
    for (at, len, _) in kind.fields() {
        match random.below(4) {
            0 => mask[*at..at + len].fill(0xff),
            1 => mask[*at..at + len].iter_mut().for_each(|b| *b = random.next() as u8),
            _ => {}
        }
    }
    (kind, Some(spec), Some(mask))
}

fn form_of(owned: &[Owned], m: &Match) -> Option<Form> {
    let room = Taking { table: TableId(0), mask: 0, entries: 1 };
    let shape = Shape::new(m, (vec![], None), 0, false, room, &Prints::default());
    Form::of(&items(owned), shape.words(), &values(m))
}

/// Whatever else a pattern of the form has: reading its values gives what translating it gives, and all of that.
#[test]
fn a_pattern_of_a_known_form_has_the_match_that_translating_it_gives() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut formed, mut known, mut others) = (0, 0, 0);
    for _ in 0..20_000 {
        let first = pattern(&mut random);
        let Some(m) = translate(&first) else { continue };
        let Some(form) = form_of(&first, &m) else { continue };
        formed += 1;
        assert_eq!(form.read(&items(&first)), Some(values(&m)), "{first:?}");
        for _ in 0..4 {
            // Some bytes of spec or mask change.
            let mut second = first.clone();
            for _ in 0..=random.below(3) {
                let n = random.below(second.len() as u64) as usize;
                let (_, spec, mask) = &mut second[n];
                let bytes = if random.below(8) == 0 { mask } else { spec };
                if let Some(bytes) = bytes {
                    let at = random.below(bytes.len() as u64) as usize;
                    bytes[at] ^= random.next() as u8;
                }
            }
            match (form.read(&items(&second)), translate(&second)) {
                (Some(read), Some(n)) => {
                    known += 1;
                    assert_eq!(read, values(&n), "{first:?}, then {second:?}");
                    assert_eq!(m.mask, n.mask, "{first:?}, then {second:?}");
                }
                (Some(_), None) => panic!("of the form, but not translated: {first:?}, then {second:?}"),
                (None, _) => others += 1,
            }
        }
    }
    assert!(formed > 1000 && known > 1000 && others > 500, "{formed} forms, {known} known, {others} others");
}

#[test]
fn what_is_no_value_makes_another_form() {
    let eth = (ItemKind::Eth, None, None);
    let ipv4 = |proto: u8, ttl: u8, mask: u8| {
        let (mut spec, mut bits) = (vec![0; 20], vec![0; 20]);
        (spec[9], bits[9], spec[8], bits[8]) = (proto, 0xff, ttl, mask);
        (ItemKind::Ipv4, Some(spec), Some(bits))
    };
    let first = [eth.clone(), ipv4(6, 1, 0xff)];
    let form = form_of(&first, &translate(&first).unwrap()).unwrap();
    assert!(form.read(&items(&[eth.clone(), ipv4(6, 9, 0xff)])).is_some(), "a TTL");
    assert!(form.read(&items(&[eth.clone(), ipv4(17, 1, 0xff)])).is_none(), "another protocol");
    assert!(form.read(&items(&[eth.clone(), ipv4(6, 1, 0xfe)])).is_none(), "another mask");
    assert!(form.read(&items(std::slice::from_ref(&eth))).is_none(), "fewer items");
    let bare = (ItemKind::Ipv4, None, None);
    assert!(form.read(&items(&[eth, bare])).is_none(), "no spec");
    let first = items(&first);
    let ranged: Vec<Item<'_>> = first.iter().map(|item| Item { last: item.spec, ..*item }).collect();
    assert!(form.read(&ranged).is_none(), "a range");
}
