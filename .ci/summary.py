"""Sum up several runs of pytest: python .ci/summary.py REPORT.xml ...

A test counts once: failed if it failed in any run, skipped if no run could run it. Prints why those were skipped,
and a last line with the three numbers.
"""

import sys
from xml.etree import ElementTree

ORDER = ("skipped", "passed", "failed")  # a later one counts


def outcome(case: ElementTree.Element) -> tuple[str, str]:
    """Return how a test ended, and the reason if it was skipped."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed", ""
    skipped = case.find("skipped")
    if skipped is not None:
        return "skipped", skipped.get("message", "")
    return "passed", ""


def main(reports: list[str]) -> None:
    """Print the reasons and the numbers."""
    ended: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            test = f"{case.get('classname')}::{case.get('name')}"
            found, reasons[test] = outcome(case)
            ended[test] = max(ended.get(test, found), found, key=ORDER.index)
    for test, found in ended.items():
        if found == "skipped":
            print(f"skipped: {test}: {reasons[test]}")
    counts = [list(ended.values()).count(name) for name in ORDER]
    print("{1} passed, {2} failed, {0} skipped".format(*counts))


main(sys.argv[1:])
