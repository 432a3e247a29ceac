//! What front ends other than Open vSwitch's ask of lowering: ranks, recirculations that software resumes, outer headers.

use super::*;
use flowlift_driver::nic::TableCaps;

const VXLAN: &str = "tnl_push(tnl_port(7),header(size=50,type=4,eth(dst=02:00:00:00:99:02,src=02:00:00:00:99:01,dl_type=0x0800),\
    ipv4(src=192.0.2.1,dst=192.0.2.2,proto=17,tos=0,ttl=64,frag=0x4000),udp(src=SRC,dst=4789,csum=0x0),\
    vxlan(flags=0x8000000,vni=0x64)),out_port(2))";

fn udp() -> String {
    format!("{IPV4}ipv4(src=10.0.0.1,dst=10.0.0.2,proto=17,frag=no),udp(src=1,dst=53)")
}

/// Lowers with the test's codec as the check, in a pipeline of the caller's.
fn on(p: &Pipeline, f: &Flow, rank: u16, excluded: Excluded) -> Result<Plan, Refusal> {
    let graph = RecircGraph::new(p.last_stage());
    let plan = lower_ranked(p, &graph, f, rank, excluded)?;
    raise::check(p, &TestCodec, f, &plan, &mut Vec::new())?;
    Ok(plan)
}

fn wrapped(source: u16, before: &str, behind: &str) -> Flow {
    let push = VXLAN.replace("SRC", &source.to_string());
    flow(&udp(), &format!("{before}{push}{behind}"))
}

#[test]
fn rank_0_goes_into_a_hash_table_and_all_others_into_tcams_by_their_order() {
    let p = pipeline();
    let f = flow(&udp(), "2");
    let plan = on(&p, &f, 0, Excluded::default()).unwrap();
    assert_eq!((plan.table, plan.entries[0].priority), (TableId(0), 0));
    let mut before = None;
    for rank in [1, 2, 7, 1000, u16::MAX] {
        let plan = on(&p, &f, rank, Excluded::default()).unwrap();
        let table = p.table(plan.table).unwrap();
        assert_eq!(table.kind, TableKind::Tcam, "rank {rank}");
        let priority = plan.entries[0].priority;
        assert!(before.is_none_or(|b| priority < b), "rank {rank} has priority {priority} after {before:?}");
        before = Some(priority);
    }
    // Rank 0 that the hash table has no room for is still ahead of all others of the TCAM.
    let mut excluded = Excluded::default();
    assert!(excluded.insert(&p, TableId(0)));
    let plan = on(&p, &f, 0, excluded).unwrap();
    assert_eq!((plan.table, plan.entries[0].priority), (TableId(1), u16::MAX));
}

#[test]
fn a_rank_without_a_tcam_is_refused_by_the_limit() {
    let mut caps = caps(64, 64);
    caps.tables.retain(|t: &TableCaps| t.kind != TableKind::Tcam || t.stage != Stage(0));
    let p = Pipeline::new(&caps, &ports());
    let f = flow(&udp(), "2");
    assert!(on(&p, &f, 0, Excluded::default()).is_ok());
    let refusal = on(&p, &f, 1, Excluded::default()).unwrap_err();
    assert_eq!(refusal.cause, Cause::Limit(Limit::NoRanks));
    assert!(refusal.to_string().contains("a priority below the highest needs a TCAM"), "{refusal}");
}

#[test]
fn a_recirculation_that_software_resumes_traps_with_its_id_and_needs_no_stage() {
    let p = pipeline().resuming_in_software_from(0x8000_0000);
    let f = flow(&udp(), "set(eth(dst=02:00:00:00:00:09)),2,recirc(0x80000005)");
    let plan = on(&p, &f, 0, Excluded::default()).unwrap();
    assert_eq!(plan.goto, None);
    let tail = &plan.entries[0].actions[1..];
    assert_eq!(tail, [NicAction::Output(NicPort(2)), NicAction::SetMetadata(0x8000_0005), NicAction::Trap]);
    // Even from the last stage, where no later one is left.
    let mut graph = RecircGraph::new(p.last_stage());
    graph.add(hop(&flow(&udp(), "recirc(0x1)")).unwrap());
    graph.add(hop(&flow(&udp().replace("recirc_id(0)", "recirc_id(0x1)"), "recirc(0x2)")).unwrap());
    graph.update();
    let last = flow(&udp().replace("recirc_id(0)", "recirc_id(0x2)"), "recirc(0x80000005)");
    assert_eq!(lower(&p, &graph, &last, Excluded::default()).unwrap().stage, Stage(2));
    // One ID less is an ordinary recirculation, as are all without that promise.
    let below = flow(&udp(), "recirc(0x7fffffff)");
    for (p, f) in [(&p, &below), (&pipeline(), &f)] {
        let refusal = on(p, f, 0, Excluded::default()).unwrap_err();
        assert!(
            matches!(refusal.cause, Cause::Action { name: "recirc", why: ActionCause::NoLaterStage, .. }),
            "{refusal}"
        );
    }
}

#[test]
fn outer_headers_are_an_action_and_what_comes_behind_is_outside() {
    let p = pipeline();
    let plan = on(&p, &wrapped(7, "set(ipv4(ttl=9)),", ",push_vlan(vid=5,pcp=0),2"), 0, Excluded::default())
        .unwrap();
    let actions = &plan.entries[0].actions;
    let [
        NicAction::SetField { .. },
        NicAction::VxlanEncap(header),
        NicAction::PushVlan { .. },
        NicAction::Output(_),
    ] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!(
        (header.len(), &header[34..38], &header[46..50]),
        (50, &[0, 7, 0x12, 0xb5][..], &[0, 0, 0x64, 0][..])
    );
    // In a clone at the end as well, as Open vSwitch writes it; and without an output it does nothing.
    let push = VXLAN.replace("SRC", "7");
    assert!(on(&p, &flow(&udp(), &format!("3,clone({push},2)")), 0, Excluded::default()).is_ok());
    assert!(on(&p, &wrapped(7, "3,", ""), 0, Excluded::default()).unwrap().entries[0].actions.len() == 1);
}

#[test]
fn outer_headers_that_a_nic_would_not_put_on_alike_are_refused() {
    let p = pipeline();
    let refused = |f: &Flow| on(&p, f, 0, Excluded::default()).unwrap_err().to_string();
    for behind in ["set(ipv4(ttl=9))", "dec_ttl(le_1(drop))", "recirc(0x1)"] {
        let why = refused(&wrapped(7, "", &format!(",{behind},2").replace("recirc(0x1),2", "recirc(0x1)")));
        assert!(why.contains("comes after tnl_push"), "{behind}: {why}");
    }
    let open = wrapped(0, "", ",2");
    assert!(refused(&open).contains("leaves the outer UDP source port open"), "{}", refused(&open));
    assert!(on(&pipeline().choosing_source_ports(), &open, 0, Excluded::default()).is_ok());
    let twice = format!("{},2", VXLAN.replace("SRC", "7"));
    assert!(refused(&wrapped(7, "", &format!(",{twice}"))).contains("comes after tnl_push"));
    let geneve = flow(&udp(), &format!("{},2", VXLAN.replace("SRC", "7").replace("type=4", "type=5")));
    assert!(refused(&geneve).contains("tnl_push (number 1) is for software only"));
    // A NIC without the action.
    let mut caps = caps(64, 64);
    for table in &mut caps.tables {
        table.actions.0 &= !(1 << flowlift_driver::nic::ActionKind::VxlanEncap as u8);
    }
    let refusal =
        on(&Pipeline::new(&caps, &ports()), &wrapped(7, "", ",2"), 0, Excluded::default()).unwrap_err();
    assert!(refusal.to_string().contains("tnl_push (number 1) is not an action"), "{refusal}");
}
