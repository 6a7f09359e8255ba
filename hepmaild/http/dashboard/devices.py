# SPDX-License-Identifier: Apache-2.0
"""What a User-Agent says about a device, in the words of people.  Pure; it comes from outside and may say anything."""

from __future__ import annotations

import re

MAX_WORDS = 60
# The first that fits decides: many call themselves by the names of others too.
_BROWSERS = (
    ("Edge", re.compile(r"\bEdg(?:e|A|iOS)?/")),
    ("Opera", re.compile(r"\bOPR/|\bOpera\b")),
    ("Samsung Internet", re.compile(r"\bSamsungBrowser/")),
    ("Firefox", re.compile(r"\b(?:Firefox|FxiOS)/")),
    ("Chrome", re.compile(r"\b(?:Chrome|CriOS|HeadlessChrome)/")),
    ("Safari", re.compile(r"\bVersion/[\d.]+ .*\bSafari/")),
)
_SYSTEMS = (
    ("Windows", re.compile(r"\bWindows\b")),
    ("Android", re.compile(r"\bAndroid\b")),
    ("iPhone", re.compile(r"\biPhone\b")),
    ("iPad", re.compile(r"\biPad\b")),
    ("macOS", re.compile(r"\bMacintosh\b")),
    ("ChromeOS", re.compile(r"\bCrOS\b")),
    ("Linux", re.compile(r"\bLinux\b|\bX11\b")),
)


def device_words(agent: str) -> str:
    """`Firefox on Linux`, `curl 8.5.0`; a browser we do not know is called what it calls itself first."""
    browser = next((name for name, sign in _BROWSERS if sign.search(agent)), "")
    system = next((name for name, sign in _SYSTEMS if sign.search(agent)), "")
    if browser:
        return f"{browser} on {system}" if system else browser
    first = agent.strip().split(" ", 1)[0].replace("/", " ")[:MAX_WORDS]
    if first and system:
        return f"{first} on {system}"
    return first or "Unknown device"
