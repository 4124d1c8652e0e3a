//! Output of a guest that must come through whole, whatever happens to the servers on its way.

use anyhow::{Result, bail};
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

/// Compares what came with what was sent: every byte, once.
pub fn compare(sent: &str, came: &str) -> Result<()> {
    let same = sent.bytes().zip(came.bytes()).take_while(|(a, b)| a == b);
    let same = same.count();
    if same < sent.len().min(came.len()) {
        bail!(
            "{:?} instead of {:?}",
            around(came, same),
            around(sent, same)
        );
    }
    if came.len() < sent.len() {
        bail!("it ends {} bytes early", sent.len() - came.len());
    }
    if came.len() > sent.len() {
        bail!("more than was sent: {:?}", around(came, same));
    }
    Ok(())
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
    fn each_byte_once() {
        assert!(compare("abcd", "abcd").is_ok());
        for wrong in ["abbcd", "abcdd", "acd", "abc", "abxcd", ""] {
            assert!(compare("abcd", wrong).is_err(), "{wrong}");
        }
    }
}
