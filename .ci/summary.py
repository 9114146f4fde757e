"""Sum up several runs of pytest: python .ci/summary.py REPORT.xml ...

A test counts once: failed if it failed in any run, skipped if no run could run it. Prints why tests were skipped,
which ones failed and where, and a last line with the three numbers.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree

ORDER = ("skipped", "passed", "failed")  # a later one counts


def outcome(case: ElementTree.Element) -> tuple[str, str]:
    """Return how a test ended, and the reason if it was skipped or failed."""
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return "failed", found.get("message", "")
    skipped = case.find("skipped")
    if skipped is not None:
        return "skipped", skipped.get("message", "")
    return "passed", ""


def main(reports: list[str]) -> None:
    """Print the reasons and the numbers; the failed tests stand last, where the end of a long record shows them."""
    ended: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            test = f"{case.get('classname')}::{case.get('name')}"
            found, reason = outcome(case)
            if test not in ended or ORDER.index(found) > ORDER.index(ended[test]):
                ended[test] = found
                reasons[test] = f"in {Path(report).stem}: {' '.join(reason.split())}"
    counts = dict.fromkeys(ORDER, 0)
    for kind in ORDER:
        for test, found in ended.items():
            if found == kind:
                counts[kind] += 1
                if kind != "passed":
                    print(f"{kind}: {test}: {reasons[test][:200]}")
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**counts))


main(sys.argv[1:])
