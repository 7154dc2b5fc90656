//! Where this kernel keeps what the hooks must know and no helper tells: offsets of members of its structures, from its
//! own type information (BTF). Nothing is guessed: what is not found is not used.

use std::fs;
use std::sync::OnceLock;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// Kinds of types that matter here, by their number.
const KIND_STRUCT: u32 = 4;

/// How the bytes are found that were redirected to a socket and are not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnreadOffsets {
    /// `struct sock::sk_user_data`, which points to the `sk_psock`.
    pub(crate) user_data: u32,
    /// `struct sk_psock::msg_tot_len`, where the kernel has it: since it answers FIONREAD with it.
    pub(crate) unread: u32,
}

/// None: this kernel does not keep the figure, or does not tell where.
pub(crate) fn unread_offsets() -> Option<UnreadOffsets> {
    // Some MiB to walk, and asked for with each pod.
    static FOUND: OnceLock<Option<UnreadOffsets>> = OnceLock::new();
    *FOUND.get_or_init(|| parse(&fs::read(VMLINUX).ok()?))
}

fn parse(btf: &[u8]) -> Option<UnreadOffsets> {
    let word =
        |at: usize| btf.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let magic = btf.get(..2)?.try_into().ok().map(u16::from_ne_bytes);
    if magic != Some(MAGIC) {
        return None;
    }
    // Length of the header, then offset and length of the types and of the strings behind it.
    let header = word(4)? as usize;
    let types = header + word(8)? as usize;
    let types_end = types + word(12)? as usize;
    let strings = header + word(16)? as usize;
    let named = |at: u32, name: &str| {
        let at = strings + at as usize;
        btf.get(at..at + name.len()) == Some(name.as_bytes()) && btf.get(at + name.len()) == Some(&0)
    };
    let (mut user_data, mut unread) = (None, None);
    let mut at = types;
    while at < types_end && (user_data.is_none() || unread.is_none()) {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let first = at + 12;
        at = first + trailing_bytes(kind, members)?;
        if kind != KIND_STRUCT {
            continue;
        }
        // With the flag, an offset holds the size of a bit field in its upper byte.
        let bits = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        let offset_of = |member_name: &str| {
            (0..members).map(|index| first + 12 * index).find_map(|member| {
                named(word(member)?, member_name).then_some((word(member + 8)? & bits) / 8)
            })
        };
        if named(name, "sock") {
            user_data = user_data.or_else(|| offset_of("sk_user_data"));
        } else if named(name, "sk_psock") {
            unread = unread.or_else(|| offset_of("msg_tot_len"));
        }
    }
    Some(UnreadOffsets { user_data: user_data?, unread: unread? })
}

/// Bytes that follow the three words which every type has.
fn trailing_bytes(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, data sections, 64-bit enumerations.
        4 | 5 | 15 | 19 => 12 * members,
        // Enumerations, prototypes.
        6 | 13 => 8 * members,
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernels_types_are_understood() {
        let btf = fs::read(VMLINUX).unwrap();
        let found = parse(&btf);
        // The member's name is somewhere in the file if and only if it is found.
        let present = btf.windows(13).any(|bytes| bytes == b"\0msg_tot_len\0");
        assert_eq!(found.is_some(), present);
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_not_used() {
        let btf = fs::read(VMLINUX).unwrap();
        for cut in [0, 1, 8, 24, 4096, btf.len() / 8] {
            assert_eq!(parse(&btf[..cut]), None, "{cut} bytes");
        }
        assert_eq!(parse(b"\x7fELF and something else that is long enough"), None);
    }
}
