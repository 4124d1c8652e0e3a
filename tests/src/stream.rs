//! Output of a guest that must come through whole, whatever happens to the servers on its way.

use anyhow::{Context, Result, bail};
use regex::Regex;

/// The guest's part of what the terminal showed: without the operator's visits to the manager, each from the key to
/// the notice that the terminal is `vm`'s again.
///
/// What the guest says meanwhile is shown after that notice. If some of it had to be skipped, that is an error.
pub fn of_guest(terminal: &str, vm: &str) -> Result<String> {
    let back = regex::escape(&format!(
        "[console of {vm}; Ctrl-] leads to the manager]\r\n"
    ));
    let visit = Regex::new(&format!(
        r"(?s)\r\n(?:\[[^\n]*\]\r\n)*vireo> .*?{back}(?<skipped>\[\d+ bytes skipped\])?"
    ))?;
    if let Some(skipped) = visit
        .captures_iter(terminal)
        .find_map(|c| c.name("skipped"))
    {
        bail!("the manager kept too little: {}", skipped.as_str());
    }
    Ok(visit.replace_all(terminal, "").into_owned())
}

/// Compares what came with what was sent: a byte may come twice in a row, `repeats` times in all. Gives how often it
/// did.
pub fn compare(sent: &str, came: &str, repeats: usize) -> Result<usize> {
    let mut found = 0;
    let mut rest = came.bytes().enumerate().peekable();
    let mut last = None;
    for (at, byte) in sent.bytes().enumerate() {
        loop {
            let (place, other) = rest
                .next()
                .with_context(|| format!("it ends {} bytes early", sent.len() - at))?;
            if other == byte {
                break;
            }
            if last != Some(other) {
                bail!(
                    "{:?} instead of {:?}",
                    around(came, place),
                    around(sent, at)
                );
            }
            found += 1;
        }
        last = Some(byte);
    }
    if let Some((place, _)) = rest.peek() {
        bail!("more than was sent: {:?}", around(came, *place));
    }
    if found > repeats {
        bail!("{found} bytes came twice, more than {repeats}");
    }
    Ok(found)
}

fn around(text: &str, place: usize) -> String {
    let bytes = text.as_bytes();
    let range = place.saturating_sub(40)..bytes.len().min(place + 40);
    String::from_utf8_lossy(bytes.get(range).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACK: &str = "[console of a; Ctrl-] leads to the manager]\r\n";

    #[test]
    fn visits_are_cut_out() {
        let text = format!(
            "line 1\r\nli\r\n[x has died: y]\r\nvireo> restart x\r\n[x runs again]\r\nvireo> \r\n{BACK}ne 2\r\n"
        );
        assert_eq!(of_guest(&text, "a").unwrap(), "line 1\r\nline 2\r\n");
        let skipped = format!("li\r\nvireo> \r\n{BACK}[7 bytes skipped]\r\nne");
        assert!(of_guest(&skipped, "a").is_err());
    }

    #[test]
    fn only_repeats_pass() {
        assert_eq!(compare("abcd", "abcd", 0).unwrap(), 0);
        assert_eq!(compare("abcd", "abbcd", 1).unwrap(), 1);
        assert!(compare("abcd", "abbcd", 0).is_err());
        assert!(compare("abcd", "abcdd", 0).is_err());
        assert!(compare("abcd", "acd", 3).is_err());
        assert!(compare("abcd", "abc", 3).is_err());
        assert!(compare("abcd", "abxcd", 3).is_err());
    }
}
