"""Links: what a URL allows, for how long, and that nobody else can make one."""

from __future__ import annotations

import base64
import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import NotFound, PermissionDenied
from gateway.links import Link, Links
from tests.cache.helpers import NAMESPACE, NOW, SECRET, Clock, record_of

PUBLIC = "https://media.example.com"
TENANT = "7" * 32
_BASE64 = string.ascii_letters + string.digits + "-_"
RECORD = record_of(b"clip")


def links(clock: Clock, *, secret: bytes = SECRET, public: str = PUBLIC, lifetime: float = 300.0) -> Links:
    return Links(secret, public, lifetime=lifetime, clock=clock)


def path_of(url: str) -> str:
    return url.removeprefix(PUBLIC)


@pytest.mark.parametrize("public", [PUBLIC, f"{PUBLIC}/"])
def test_a_url_is_opened_by_every_process_with_the_secret(public: str) -> None:
    """It says where the bytes lie, whose they are, of which type and until when."""
    url = links(Clock(), public=public).url_of(RECORD, TENANT)

    assert url is not None
    assert url.text.startswith(f"{PUBLIC}/artifacts/{RECORD.output.digest.hex}/")
    expected = Link(NAMESPACE, TENANT, RECORD.output.digest, "video/mp4", url.expires_at)
    assert expected == links(Clock()).open(path_of(url.text))


@given(st.floats(0.0, 1e6), st.floats(2.0, 1e5))
def test_a_url_is_good_for_half_a_lifetime_at_least_and_for_a_whole_one_at_most(later: float, lifetime: float) -> None:
    """Whenever it is made; a second may be lost to whole numbers."""
    clock = Clock(NOW + later)
    url = links(clock, lifetime=lifetime).url_of(record_of(b"clip", max_age=1e9), TENANT)

    assert url is not None
    assert lifetime / 2 - 1 <= url.expires_at - clock() <= lifetime


def test_equal_requests_get_equal_urls_for_a_while() -> None:
    """So that a CDN keeps the file once; in the next half of a lifetime they get another one."""
    clock = Clock(1_700_000_100.0)  # on the grid
    made = links(clock)
    urls = []
    for _ in range(4):
        urls.append(made.url_of(RECORD, TENANT))
        clock.advance(75.0)

    assert urls[0] == urls[1] != urls[2] == urls[3]


def test_a_url_never_outlives_its_artifact() -> None:
    """It ends with the record's hard age, and is not made at all in the last moment before."""
    url = links(Clock()).url_of(record_of(b"clip", max_age=10.0), TENANT)
    assert url is not None
    assert NOW + 10 == url.expires_at
    assert links(Clock(NOW + 9.5)).url_of(record_of(b"clip", max_age=10.4), TENANT) is not None
    assert links(Clock(NOW + 10.1)).url_of(record_of(b"clip", max_age=10.4), TENANT) is None


def test_what_does_not_lie_under_its_digest_has_no_url() -> None:
    """An output inside its record could not be found again by its name."""
    assert links(Clock()).url_of(record_of(b"clip", inline=True), TENANT) is None


def test_a_url_ends() -> None:
    """To the second, and then says what to do."""
    clock = Clock()
    url = links(clock).url_of(RECORD, TENANT)
    assert url is not None
    clock.now = url.expires_at - 0.001
    assert url.expires_at == links(clock).open(path_of(url.text)).expires_at
    clock.now = float(url.expires_at)
    with pytest.raises(NotFound, match="ask for the media itself again") as caught:
        links(clock).open(path_of(url.text))
    assert "URL_EXPIRED" == caught.value.reason


def test_an_altered_url_opens_nothing() -> None:
    """No character of it can be changed, left out or added; nor can a seal be put under another digest."""
    clock = Clock()
    made = links(clock)
    url, other = made.url_of(RECORD, TENANT), made.url_of(record_of(b"other"), TENANT)
    assert url is not None
    assert other is not None
    path = path_of(url.text)
    start, digest, seal = path.rsplit("/", 2)
    altered = {
        path[:at] + ("A" if path[at] != "A" else "B") + path[at + 1 :] for at in range(len("/artifacts/"), len(path))
    }
    altered |= {path[:-1] + last for last in _BASE64 + "+/=" if last != path[-1]}  # which may stand for the same bits
    altered |= {path[:-1], path + "A", path + "/", f"{start}/{digest}", "", "/", "/artifacts/", "/artifacts/../x"}
    altered |= {f"{start}/{other.text.rsplit('/', 2)[1]}/{seal}"}
    for each in altered:
        with pytest.raises(PermissionDenied) as caught:
            made.open(each)
        assert "URL_ALTERED" == caught.value.reason


def test_another_deployments_url_opens_nothing() -> None:
    """Its seal was made under another secret."""
    url = links(Clock(), secret=bytes(32)).url_of(RECORD, TENANT)
    assert url is not None
    with pytest.raises(PermissionDenied):
        links(Clock()).open(path_of(url.text))


@given(st.text())
def test_no_other_text_is_a_path(text: str) -> None:
    with pytest.raises(PermissionDenied):
        links(Clock()).open(f"/artifacts/{text}")


def test_a_url_names_nobody() -> None:
    """Neither model nor stage, nor the content id, which a guessed prompt could be held against."""
    record = replace(record_of(b"clip", name="prompt"), model="a-model", stage="a-stage")
    url = links(Clock()).url_of(record, TENANT)
    assert url is not None
    sealed = url.text.rsplit("/", 1)[1]
    content = url.text.encode() + base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
    hidden = [b"a-model", b"a-stage", record.address.content_id.encode(), bytes.fromhex(record.address.content_id)]
    assert not any(each in content for each in hidden)
