//! What needs no device. The rest is tests/vm's.

use super::*;

#[test]
fn configuration_space_accesses_have_a_width_and_are_aligned() {
    let mut data = 0x0403_0201u32.to_le_bytes();
    assert_eq!(config_part(6, 2, &mut data).unwrap(), [1, 2]);
    assert_eq!(data, [1, 2, 0, 0], "what lies past the width is zero, also after a read");
    for (offset, width) in [(1, 2), (2, 4), (0, 8), (0, 0), (0, 3)] {
        assert!(config_part(offset, width, &mut [0; 4]).is_err(), "{offset} {width}");
    }
}

#[test]
fn a_function_that_is_not_bound_is_refused_before_anything_is_opened() {
    let host = Host::new("/nowhere", Arc::new(crate::bind::ThisKernel));
    let e = VfioFunction::open(&host, "0:0.0".parse().unwrap()).err().unwrap();
    assert!(e.to_string().contains("not bound to vfio-pci"), "{e}");
}
