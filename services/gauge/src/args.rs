//! What the manifest asks for.

/// What to do, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args<'a> {
    /// Measure what threads get that burn their Budgets.
    pub shares: bool,
    /// How many windows of time to account for, in each phase.
    pub accounts: u32,
    /// The server to kill.
    pub reap: Option<&'a str>,
    /// How often.
    pub kills: u32,
    /// How many rounds vCPUs go from processor to processor.
    pub roam: u32,
    /// How often to remap a page under a guest, and so on.
    pub stale: u32,
    /// Have the machine switched off at the end.
    pub power_off: bool,
}

/// Reads words. The error is the first word that means nothing.
pub fn parse(text: &str) -> Result<Args<'_>, &str> {
    let mut args = Args::default();
    for word in text.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = value.parse();
        match (name, number) {
            ("shares", _) if value.is_empty() => args.shares = true,
            ("poweroff", _) if value.is_empty() => args.power_off = true,
            ("accounts", Ok(n)) => args.accounts = n,
            ("kills", Ok(n)) => args.kills = n,
            ("roam", Ok(n)) => args.roam = n,
            ("stale", Ok(n)) => args.stale = n,
            ("reap", _) if !value.is_empty() => args.reap = Some(value),
            _ => return Err(word),
        }
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let all = parse("shares accounts=3 reap=a.uart0 kills=20 roam=7 stale=9 poweroff");
        let expected = Args {
            shares: true,
            accounts: 3,
            reap: Some("a.uart0"),
            kills: 20,
            roam: 7,
            stale: 9,
            power_off: true,
        };
        assert_eq!(all, Ok(expected));
        assert_eq!(parse(""), Ok(Args::default()));
        for bad in ["shares=1", "accounts", "accounts=x", "reap=", "fast"] {
            assert_eq!(parse(bad), Err(bad));
        }
    }
}
