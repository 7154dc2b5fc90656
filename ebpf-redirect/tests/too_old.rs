//! A kernel that lacks what Weft cannot do without is refused with an error that says what that is, and nothing is left
//! behind on it. Only such a kernel can show it: `tests/kernels/run.sh` boots one.

use std::path::PathBuf;

use weft_ebpf::{FLOWS_MAX_DEFAULT, Kernel, Options};

#[test]
#[ignore = "needs a kernel before 5.15, which tests/kernels/run.sh boots"]
fn an_old_kernel_is_refused_by_what_it_lacks() {
    let cgroup = PathBuf::from("/sys/fs/cgroup/unified");
    let options = Options {
        pin_dir: PathBuf::from("/sys/fs/bpf/weft-too-old"),
        cgroup_root: cgroup.clone(),
        proxy_cgroup: cgroup,
        pods_cgroup: None,
        redirect: true,
        flows_max: FLOWS_MAX_DEFAULT,
    };
    let refused = Kernel::load(&options).err().unwrap().to_string();
    assert!(refused.contains("SO_NETNS_COOKIE") && refused.contains("5.15"), "{refused}");
    assert!(!options.pin_dir.exists(), "something was left behind");
}
