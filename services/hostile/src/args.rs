//! What the manifest asks for: words `key=value`, numbers decimal or with `0x`.

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Args {
    /// Where the random numbers start; `None`: the time of day.
    pub seed: Option<u64>,
    /// System calls by the attackers after which it ends; 0: never.
    pub calls: u64,
    /// Seconds after which it ends; 0: never.
    pub seconds: u64,
    /// System calls of a round.
    pub round: u64,
    /// Milliseconds of a round at most.
    pub ms: u64,
    /// Attacking threads a processor.
    pub threads: u64,
    /// Processors to attack on: as many of them as root gives (`cpu1`, ...).
    pub cpus: u64,
    /// The kernel's checker runs after every so many system calls, and after each round; 0: after each round only.
    pub check: u64,
    /// A thread executes random bytes.
    pub code: bool,
    /// Instead of attacking: look for secrets this many times.
    pub look: u64,
    /// Have the machine switched off at the end.
    pub power_off: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            seed: None,
            calls: 100_000,
            seconds: 0,
            round: 4_000,
            ms: 1_000,
            threads: 4,
            cpus: 1,
            check: 0,
            code: true,
            look: 0,
            power_off: false,
        }
    }
}

/// Threads at most, all processors together: what the arena's layout has room for.
pub const MAX_THREADS: u64 = 16;

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Reads them. The error is the first word that means nothing.
pub fn parse(text: &str) -> Result<Args, &str> {
    let mut args = Args::default();
    for word in text.split_whitespace() {
        if word == "poweroff" {
            args.power_off = true;
            continue;
        }
        let (key, value) = word.split_once('=').ok_or(word)?;
        let n = number(value).ok_or(word)?;
        match key {
            "seed" => args.seed = Some(n),
            "calls" => args.calls = n,
            "seconds" => args.seconds = n,
            "round" => args.round = n.max(1),
            "ms" => args.ms = n.max(1),
            "threads" if (1..=MAX_THREADS).contains(&n) => args.threads = n,
            "cpus" if (1..=8).contains(&n) => args.cpus = n,
            "check" => args.check = n,
            "code" => args.code = n != 0,
            "look" => args.look = n,
            _ => return Err(word),
        }
    }
    if args.threads * args.cpus > MAX_THREADS {
        return Err("threads");
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let text = "seed=0x10 calls=5 seconds=7 round=9 threads=2 cpus=2 check=100 code=0 poweroff";
        let args = parse(text).unwrap();
        let expected = Args {
            seed: Some(16),
            calls: 5,
            seconds: 7,
            round: 9,
            ms: 1_000,
            threads: 2,
            cpus: 2,
            check: 100,
            code: false,
            look: 0,
            power_off: true,
        };
        assert_eq!(args, expected);
        assert_eq!(parse(""), Ok(Args::default()));
        for bad in [
            "seed",
            "seed=x",
            "threads=0",
            "threads=17",
            "cpus=9",
            "speed=1",
        ] {
            assert_eq!(parse(bad), Err(bad));
        }
        assert_eq!(parse("threads=8 cpus=8"), Err("threads"));
    }
}
