//! The text of a plan, `walk=..,only=..`: from words to a [`ZapPlan`] and back. The one table of fields and words for the
//! core and for Python.
//!
//! A field that decides nothing in a walk is refused there with the reason, so that no plan says what it does not do.

use super::plan::{
    BeforeDrop, ListPlan, Offer, Only, PLAN_FIELDS, PlanLock, ReloadRoots, RestartRules, RootPages, RootPlan, Skip,
    SlotPages, SlotPlan, Stop, Walk, ZapPlan,
};
use crate::mmu::words::error::{Error, Result};

/// Fields that a walk over one slot has no use for, and why.
const NOT_OF_SLOT: [(&str, &str, &str); 3] = [
    ("stop", "none", "it asks for each gfn of the slot, and has no list to stop in"),
    ("skip", "none", "it never looks up a page that is marked invalid"),
    ("restart", "never", "it keeps its place by gfn, and has no list to start again"),
];

/// The same of a walk over the TDP MMU's roots.
const NOT_OF_ROOTS: [(&str, &str, &str); 3] = [
    ("stop", "none", "it ends with the last root, and has no list to stop in"),
    ("skip", "none", "which roots are zapped says only=, and their tables are on no list"),
    ("restart", "never", "it keeps its place by gfn, and has no list to start again"),
];

fn refuse<T>(why: String) -> Result<T> {
    Err(Error::Plan(why))
}

fn one_of<T>(field: &str, given: &str, found: Option<T>, words: &[&str]) -> Result<T> {
    found.map_or_else(|| refuse(format!("{field}={given}: expected one of {}", words.join(", "))), Ok)
}

fn offer(given: &str) -> Result<Offer> {
    let batch = given.strip_prefix("batch:").filter(|n| !n.is_empty() && n.bytes().all(|digit| digit.is_ascii_digit()));
    match (given, batch.and_then(|n| n.parse().ok())) {
        ("never", _) => Ok(Offer::Never),
        ("each_page", _) => Ok(Offer::EachPage),
        ("when_wanted", _) => Ok(Offer::WhenWanted),
        (_, Some(least)) if least > 0 => Ok(Offer::Batch(least)),
        _ => refuse(format!("offer={given}: expected never, each_page, when_wanted or batch:N")),
    }
}

fn restart(given: &str) -> Result<RestartRules> {
    let mut rules = RestartRules::default();
    for rule in given.split('+').filter(|rule| !rule.is_empty() && *rule != "never") {
        match rule {
            "on_nonzero" => rules.on_nonzero = true,
            "on_unstable" => rules.on_unstable = true,
            "on_lock_drop" => rules.on_lock_drop = true,
            _ => return refuse(format!("restart={given}: expected a set of on_nonzero, on_unstable, on_lock_drop")),
        }
    }
    Ok(rules)
}

impl ZapPlan {
    /// The plan of fields and their words; a field that is left out has its default.
    pub fn of(given: &[(&str, &str)]) -> Result<Self> {
        for (name, _) in given {
            if !PLAN_FIELDS.iter().any(|(field, _)| field == name) {
                return refuse(format!(
                    "field {name}: expected one of {}",
                    PLAN_FIELDS.map(|(field, _)| field).join(", ")
                ));
            }
        }
        let word = |field: &str| {
            let said = given.iter().rev().find_map(|(name, word)| (*name == field).then_some(*word));
            said.or_else(|| PLAN_FIELDS.iter().find_map(|(name, words)| (*name == field).then(|| words[0])))
                .unwrap_or("")
        };
        let only = word("only");
        let before_drop =
            one_of("before_drop", word("before_drop"), BeforeDrop::of(word("before_drop")), BeforeDrop::WORDS)?;
        let reload = word("reload_roots");
        let reload_roots = one_of("reload_roots", reload, ReloadRoots::of(reload), ReloadRoots::WORDS)?;
        let bump = word("bump_valid_gen");
        let bump_valid_gen = one_of(
            "bump_valid_gen",
            bump,
            (bump == "yes").then_some(true).or((bump == "no").then_some(false)),
            &["no", "yes"],
        )?;
        let plan = ListPlan {
            // Of a walk over a slot only what follows is looked at; its words are checked all the same.
            walk: Walk::of(word("walk")).unwrap_or(Walk::Head),
            only: one_of("only", only, Only::of(only), Only::WORDS)?,
            stop: one_of("stop", word("stop"), Stop::of(word("stop")), Stop::WORDS)?,
            skip: one_of("skip", word("skip"), Skip::of(word("skip")), Skip::WORDS)?,
            restart: restart(word("restart"))?,
            offer: offer(word("offer"))?,
            before_drop,
            bump_valid_gen,
            reload_roots,
        };
        let lock = one_of("lock", word("lock"), PlanLock::of(word("lock")), PlanLock::WORDS)?;
        if lock == PlanLock::Shared && word("walk") != "roots" {
            return refuse(
                "lock=shared: only roots of the TDP MMU are zapped so, expected walk=roots with it".to_owned(),
            );
        }
        match word("walk") {
            "roots" => Self::of_roots(plan, lock, &word),
            "slot" => Self::of_slot(plan, &word),
            "index" if plan.only != Only::MmioCached => {
                refuse("walk=index: the index holds only MMIO-caching pages, expected only=mmio_cached".to_owned())
            }
            walk => one_of("walk", walk, Walk::of(walk), PLAN_FIELDS[0].1).map(|_| Self::List(plan)),
        }
    }

    fn refuse_what_decides_nothing<'a>(
        walk: &str,
        plan: &ListPlan,
        fields: [(&str, &str, &str); 3],
        word: &impl Fn(&str) -> &'a str,
    ) -> Result<()> {
        let decides_nothing =
            [plan.stop != Stop::None, plan.skip != Skip::None, plan.restart != RestartRules::default()];
        for ((field, default, why), is_said) in fields.into_iter().zip(decides_nothing) {
            if is_said {
                return refuse(format!("walk={walk} with {field}={}: {why}, expected {field}={default}", word(field)));
            }
        }
        Ok(())
    }

    fn of_roots<'a>(plan: ListPlan, lock: PlanLock, word: &impl Fn(&str) -> &'a str) -> Result<Self> {
        let only = word("only");
        let Some(pages) = RootPages::of(only) else {
            return refuse(format!(
                "walk=roots with only={only}: no table of the TDP MMU is marked so, expected one of {}",
                RootPages::WORDS.join(", ")
            ));
        };
        Self::refuse_what_decides_nothing("roots", &plan, NOT_OF_ROOTS, word)?;
        let is_offered = match plan.offer {
            Offer::Never => false,
            Offer::WhenWanted => true,
            Offer::EachPage | Offer::Batch(_) => {
                let said = word("offer");
                return refuse(format!(
                    "walk=roots with offer={said}: it polls at each entry, expected offer=when_wanted or never"
                ));
            }
        };
        if lock == PlanLock::Shared && pages != RootPages::Obsolete {
            return refuse(format!(
                "walk=roots with lock=shared and only={only}: faults could map anew behind the walk, expected only=obsolete"
            ));
        }
        let ListPlan { before_drop, bump_valid_gen, reload_roots, .. } = plan;
        if before_drop == BeforeDrop::Commit && pages != RootPages::Slot {
            return refuse(format!(
                "walk=roots with before_drop=commit and only={only}: zapped roots owe no flush, expected before_drop=keep"
            ));
        }
        Ok(Self::Roots(RootPlan { pages, lock, is_offered, before_drop, bump_valid_gen, reload_roots }))
    }

    fn of_slot<'a>(plan: ListPlan, word: &impl Fn(&str) -> &'a str) -> Result<Self> {
        let Some(pages) = SlotPages::of(word("only")) else {
            return refuse("walk=slot: expected only=slot or only=indirect with it".to_owned());
        };
        Self::refuse_what_decides_nothing("slot", &plan, NOT_OF_SLOT, word)?;
        let is_offered = match plan.offer {
            Offer::Never => false,
            Offer::EachPage | Offer::WhenWanted => true,
            Offer::Batch(_) => {
                let said = word("offer");
                return refuse(format!(
                    "walk=slot with offer={said}: it polls after each head and each gfn, expected offer=each_page or never"
                ));
            }
        };
        let ListPlan { before_drop, bump_valid_gen, reload_roots, .. } = plan;
        Ok(Self::Slot(SlotPlan { pages, is_offered, before_drop, bump_valid_gen, reload_roots }))
    }

    /// Every field and its word, in the order of [`PLAN_FIELDS`].
    #[must_use]
    pub fn words(&self) -> [(&'static str, String); 10] {
        let list = match self {
            Self::List(plan) => *plan,
            // What a walk over a slot or over roots does not have is said as the default.
            Self::Slot(plan) => ListPlan {
                walk: Walk::Head,
                only: if plan.pages == SlotPages::All { Only::Slot } else { Only::Indirect },
                stop: Stop::None,
                skip: Skip::None,
                restart: RestartRules::default(),
                offer: if plan.is_offered { Offer::EachPage } else { Offer::Never },
                before_drop: plan.before_drop,
                bump_valid_gen: plan.bump_valid_gen,
                reload_roots: plan.reload_roots,
            },
            Self::Roots(plan) => ListPlan {
                walk: Walk::Head,
                only: match plan.pages {
                    RootPages::Obsolete => Only::Obsolete,
                    RootPages::All => Only::All,
                    RootPages::Slot => Only::Slot,
                },
                stop: Stop::None,
                skip: Skip::None,
                restart: RestartRules::default(),
                offer: if plan.is_offered { Offer::WhenWanted } else { Offer::Never },
                before_drop: plan.before_drop,
                bump_valid_gen: plan.bump_valid_gen,
                reload_roots: plan.reload_roots,
            },
        };
        let (walk, lock) = match self {
            Self::List(_) => (list.walk.word(), PlanLock::Exclusive),
            Self::Slot(_) => ("slot", PlanLock::Exclusive),
            Self::Roots(plan) => ("roots", plan.lock),
        };
        let rules = list.restart;
        let rules = [
            ("on_lock_drop", rules.on_lock_drop),
            ("on_nonzero", rules.on_nonzero),
            ("on_unstable", rules.on_unstable),
        ];
        let rules: Vec<&str> = rules.into_iter().filter_map(|(rule, is_set)| is_set.then_some(rule)).collect();
        [
            ("walk", walk.to_owned()),
            ("only", list.only.word().to_owned()),
            ("stop", list.stop.word().to_owned()),
            ("skip", list.skip.word().to_owned()),
            ("restart", if rules.is_empty() { "never".to_owned() } else { rules.join("+") }),
            (
                "offer",
                match list.offer {
                    Offer::Never => "never".to_owned(),
                    Offer::EachPage => "each_page".to_owned(),
                    Offer::WhenWanted => "when_wanted".to_owned(),
                    Offer::Batch(least) => format!("batch:{least}"),
                },
            ),
            ("before_drop", list.before_drop.word().to_owned()),
            ("bump_valid_gen", if list.bump_valid_gen { "yes" } else { "no" }.to_owned()),
            ("reload_roots", list.reload_roots.word().to_owned()),
            ("lock", lock.word().to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(plan: &ZapPlan) -> Result<ZapPlan> {
        let words = plan.words();
        ZapPlan::of(&words.each_ref().map(|(name, word)| (*name, word.as_str())))
    }

    #[test]
    fn a_plan_survives_its_words() {
        for (name, plan, _) in ZapPlan::NAMED {
            assert_eq!(read_back(&plan), Ok(plan), "{name}");
        }
        let batch = ZapPlan::List(ListPlan { offer: Offer::Batch(7), ..ListPlan::MERGED });
        assert_eq!(read_back(&batch), Ok(batch));
        assert_eq!(ZapPlan::of(&[]), ZapPlan::of(&[("walk", "head"), ("only", "all")]));
    }

    #[test]
    fn what_a_walk_does_not_do_cannot_be_said() {
        for (given, said) in [
            (&[("walk", "slot"), ("only", "mmio_cached")][..], "expected only=slot or only=indirect"),
            (&[("walk", "slot"), ("only", "slot"), ("stop", "first_not_obsolete")], "no list to stop in"),
            (&[("walk", "slot"), ("only", "slot"), ("skip", "invalid")], "marked invalid"),
            (&[("walk", "slot"), ("only", "slot"), ("restart", "on_nonzero")], "no list to start again"),
            (&[("walk", "slot"), ("only", "slot"), ("offer", "batch:3")], "polls after each head"),
            (&[("walk", "index")], "expected only=mmio_cached"),
            (&[("walk", "sideways")], "expected one of head, tail, index, slot"),
            (&[("lock", "shared")], "expected walk=roots"),
            (&[("walk", "roots"), ("only", "mmio_cached")], "is marked so"),
            (&[("walk", "roots"), ("skip", "invalid")], "which roots are zapped"),
            (&[("walk", "roots"), ("offer", "each_page")], "polls at each entry"),
            (&[("walk", "roots"), ("lock", "shared")], "expected only=obsolete"),
            (&[("walk", "roots"), ("before_drop", "commit")], "owe no flush"),
            (&[("colour", "red")], "expected one of walk, only"),
            (&[("offer", "batch:0")], "batch:N"),
            (&[("offer", "batch:+3")], "batch:N"),
            (&[("restart", "on_monday")], "a set of on_nonzero"),
            (&[("bump_valid_gen", "perhaps")], "no, yes"),
        ] {
            let error = ZapPlan::of(given).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
        let polled = [("walk", "slot"), ("only", "slot"), ("offer", "when_wanted"), ("before_drop", "commit")];
        assert_eq!(ZapPlan::of(&polled), Ok(ZapPlan::V5_2_SLOT));
    }
}
