//! Whether the wall clocks of those who answered agree: certificates are judged by them.
//!
//! Pure: answers of `/status` in. This machine's own clock does not count.

use std::collections::BTreeMap;

use serde_json::Value;

/// As far as a node's clock may be behind: certificates begin so much before they are signed. All are asked at once, and answer within
/// seconds.
const APART_SECONDS_MAX: u64 = 60;

/// By how many seconds the clock of each that is wrong is ahead (negative: behind) of what most of them say.
pub(crate) fn wrong<'a>(answers: impl IntoIterator<Item = (&'a str, &'a Value)>) -> BTreeMap<&'a str, i64> {
    let clock = |(name, answer): (&'a str, &Value)| Some((name, answer["clock_unix_s"].as_i64()?));
    let clocks: Vec<_> = answers.into_iter().filter_map(clock).collect();
    let mut sorted: Vec<i64> = clocks.iter().map(|(_, clock)| *clock).collect();
    sorted.sort_unstable();
    let Some(middle) = sorted.get(sorted.len() / 2) else { return BTreeMap::new() };
    let ahead = clocks.into_iter().map(|(name, clock)| (name, clock.saturating_sub(*middle)));
    ahead.filter(|(_, ahead)| ahead.unsigned_abs() > APART_SECONDS_MAX).collect()
}

/// For people: `2 d ahead of the others'`.
pub(crate) fn shown(ahead_seconds: i64) -> String {
    let side = if ahead_seconds < 0 { "behind" } else { "ahead of" };
    format!("{} {side} the others'", crate::summary::span(ahead_seconds.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_clock_is_wrong_if_most_others_say_otherwise() {
        let wrong_of = |clocks: &[i64]| {
            let names: Vec<String> = (0..clocks.len()).map(|nth| nth.to_string()).collect();
            let answers: Vec<Value> = clocks.iter().map(|clock| json!({ "clock_unix_s": clock })).collect();
            let all = wrong(names.iter().map(String::as_str).zip(&answers));
            all.into_iter().map(|(name, ahead)| (name.parse::<usize>().unwrap(), ahead)).collect::<Vec<_>>()
        };
        let now = 1_800_000_000;
        assert_eq!(wrong_of(&[]), []);
        assert_eq!(wrong_of(&[now, now + 60, now - 60]), []);
        assert_eq!(wrong_of(&[now, now + 61, now]), [(1, 61)]);
        assert_eq!(wrong_of(&[now - 172_800, now, now + 1]), [(0, -172_800)]);
        // Of two, one of them is.
        assert_eq!(wrong_of(&[now, now + 172_800]).len(), 1);
        assert_eq!(wrong([("old", &json!({}))]), BTreeMap::new());
        assert_eq!(
            (shown(172_800), shown(-90)),
            ("2 d ahead of the others'".into(), "90 s behind the others'".into())
        );
    }
}
