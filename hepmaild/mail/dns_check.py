# SPDX-License-Identifier: Apache-2.0
"""What a domain has to publish so that its mail is believed: SPF (RFC 7208), DKIM (RFC 6376), DMARC (RFC 7489).  Pure.

The records found come from outside: they are shown, escaped, and never obeyed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hepmaild.mail import dkim_record

GOOD, WARN, BAD, UNKNOWN = "good", "warn", "bad", "unknown"
MAX_LOOKUPS = 10  # RFC 7208 §4.6.4
_LOOKING = ("include", "a", "mx", "ptr", "exists", "redirect")
MAX_PARENTS = 5

Found = Sequence[str] | str  # texts, or why nobody answered


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    state: GOOD, WARN (works, could be better), BAD, UNKNOWN (DNS did not answer).  text: one or more sentences.
    name, value: the record to publish, "" when there is none to name.  found: what stands there now.
    """

    what: str
    state: str
    text: str
    name: str
    value: str
    found: tuple[str, ...] = ()

    @property
    def zone_line(self) -> str:
        """The record for a zone file; "": none."""
        return dkim_record.zone_line(self.name, self.value) if self.value else ""


def check_spf(domain: str, found: Found, mechanism: str) -> Check:
    """The domain's SPF record.  mechanism: what lets our mail through, such as `a:out.example.net`."""
    wanted = f"v=spf1 {mechanism} ~all"
    if isinstance(found, str):
        return _unknown("SPF", found, domain, wanted)
    records = [text for text in found if text.split(" ")[0].lower() == "v=spf1"]
    shown = tuple(records)
    if not records:
        return Check("SPF", BAD, "There is no SPF record.", domain, wanted)
    if len(records) > 1:
        text = f"There are {len(records)} SPF records; with more than one, receivers ignore them all. Make one of them."
        return Check("SPF", BAD, text, domain, wanted, shown)
    terms = [term.lower() for term in records[0].split()[1:]]
    wanted = _with(records[0], mechanism)
    if any(term in ("all", "+all") for term in terms):
        return Check("SPF", BAD, "It lets everybody send as this domain (+all).", domain, wanted, shown)
    lookups = sum(
        term.lstrip("+-~?").partition(":")[0].partition("=")[0].partition("/")[0] in _LOOKING for term in terms
    )
    if lookups > MAX_LOOKUPS:
        text = f"It needs {lookups} look-ups, and receivers give up after {MAX_LOOKUPS}."
        return Check("SPF", BAD, text, domain, wanted, shown)
    if mechanism.lower() in terms or f"+{mechanism.lower()}" in terms:
        return Check("SPF", GOOD, "It names this way out.", domain, "", shown)
    text = (
        f"There is a record, and it does not name {mechanism} itself. That is right if it lets our mail through by "
        "address or by include; otherwise publish the one below."
    )
    return Check("SPF", WARN, text, domain, wanted, shown)


def _with(record: str, mechanism: str) -> str:
    """The record with this mechanism in it, and nothing wide open."""
    terms = [term for term in record.split()[1:] if term.lower() not in ("all", "+all")]
    if mechanism.lower() not in [term.lower() for term in terms]:
        terms.insert(0, mechanism)
    if not any(term.lower().endswith("all") or term.lower().startswith("redirect=") for term in terms):
        terms.append("~all")
    return " ".join(("v=spf1", *terms))


def check_dkim(key: Mapping[str, Any], found: Found) -> Check:
    """The record of one of our keys.  key: domain, selector, algorithm, public_key."""
    name = dkim_record.record_name(key["domain"], key["selector"])
    value = dkim_record.record_value(key["algorithm"], key["public_key"])
    what = f"DKIM {key['selector']}"
    if isinstance(found, str):
        return _unknown(what, found, name, value)
    wrong = dkim_record.judge(found, key["algorithm"], key["public_key"])
    if wrong is None:
        return Check(what, GOOD, "The record fits our key.", name, "", tuple(found))
    return Check(what, BAD, wrong[:1].upper() + wrong[1:] + ".", name, value, tuple(found))


def no_dkim(domain: str) -> Check:
    """No key signs for the domain."""
    text = f"No key signs the mail of this domain. The operator makes one with: hepmaild dkim add {domain}"
    return Check("DKIM", WARN, text, "", "")


def own_dkim() -> Check:
    """The mail leaves by an account's own SMTP server."""
    text = "Mail that leaves by the account's own SMTP server is signed by that server, or by nobody: ask who runs it."
    return Check("DKIM", WARN, text, "", "")


def dmarc_names(domain: str) -> list[str]:
    """Where a DMARC record may stand, nearest first: the domain, then its parents (never a top-level domain)."""
    labels = domain.split(".")
    nearest = [".".join(labels[n:]) for n in range(max(1, len(labels) - 1))]
    return [f"_dmarc.{name}" for name in (nearest[:1] + nearest[1:][-MAX_PARENTS:])]


def check_dmarc(domain: str, found: Mapping[str, Found]) -> Check:
    """The domain's DMARC record, or the nearest parent's.  found: by the names of `dmarc_names`."""
    own = f"_dmarc.{domain}"
    wanted = f"v=DMARC1; p=none; rua=mailto:postmaster@{domain}"
    for name in dmarc_names(domain):
        answer = found[name]
        if isinstance(answer, str):
            return _unknown("DMARC", answer, own, wanted)
        records = [text for text in answer if text.replace(" ", "").lower().startswith("v=dmarc1")]
        if len(records) > 1:
            text = f"There are {len(records)} DMARC records; with more than one, receivers ignore them all."
            return Check("DMARC", BAD, text, own, wanted, tuple(records))
        if records:
            return _judge_dmarc(name, own, records[0], wanted)
    text = "There is no DMARC record. Begin with one that only asks for reports."
    return Check("DMARC", BAD, text, own, wanted)


def _judge_dmarc(name: str, own: str, record: str, wanted: str) -> Check:
    tags = dict(part.strip().partition("=")[::2] for part in record.split(";") if "=" in part)
    policy = {key.strip().lower(): value.strip().lower() for key, value in tags.items()}.get("p", "")
    whose = "" if name == own else f" It is the one of {name.removeprefix('_dmarc.')}, which counts here too."
    if policy not in ("none", "quarantine", "reject"):
        return Check("DMARC", BAD, f"It has no policy that receivers know (p=).{whose}", own, wanted, (record,))
    if policy == "none":
        text = f"It only asks for reports (p=none). Raise it to quarantine once those show that all is signed.{whose}"
        return Check("DMARC", WARN, text, "", "", (record,))
    return Check(
        "DMARC",
        GOOD,
        f"Mail that fails the checks is to be put aside or refused (p={policy}).{whose}",
        "",
        "",
        (record,),
    )


def _unknown(what: str, why: str, name: str, wanted: str) -> Check:
    return Check(what, UNKNOWN, f"DNS did not answer: {why}. Nothing is known; try again in a minute.", name, wanted)
