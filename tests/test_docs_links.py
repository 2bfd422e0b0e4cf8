"""Links between pages lead somewhere; docs/claim.md has all items of its checklist."""

import re

import pytest


def anchors(page: str) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.fixture(scope="module")
def pages(bundle_root):
    return {path.name: path.read_text(encoding="utf-8") for path in (bundle_root / "docs").glob("*.md")}


def test_links_between_pages_lead_to_a_heading(pages):
    dead = []
    for name, page in pages.items():
        for file, heading in re.findall(r"\]\(([\w.]*\.md)?(?:#([\w-]+))?\)", page):
            target = file or name
            if target not in pages or (heading and heading not in anchors(pages[target])):
                dead.append(f"{name}: {file}#{heading}")
    assert dead == []


def test_claim_answers_every_item_once(pages):
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", pages["claim.md"], re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 45))
    assert all(answer.strip() for _, _, answer in rows)
