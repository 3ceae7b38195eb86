"""The page in a real browser: around an engine with canned answers, then around networks."""

import io
import json
import re
import shutil
from urllib.parse import urlsplit

import pytest
from PIL import Image

from petface.serving.requests import Limits
from tests.conftest import EMPTY
from tests.serving import made_server
from tests.serving.made_server import EMBEDDER, HEIC, RULE, FakeEngine, running
from tests.tools.test_serve import served

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
expect = sync_api.expect
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Counts what the page makes, and what comes from a mouse; violations become console errors.
WATCH = """
window.seen = { made: 0, revoked: 0, pointer: 0 };
const make = URL.createObjectURL, revoke = URL.revokeObjectURL;
URL.createObjectURL = (blob) => { window.seen.made += 1; return make.call(URL, blob); };
URL.revokeObjectURL = (url) => { window.seen.revoked += 1; revoke.call(URL, url); };
for (const kind of ["mousedown", "pointerdown", "touchstart"])
  addEventListener(kind, () => { window.seen.pointer += 1; }, true);
addEventListener("securitypolicyviolation",
  (event) => console.error(`violation: ${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


SCRIPT = "<script>window.wasRun = true</script><img src=x onerror='window.wasRun = true'>"
RTL = "قط \u202e سيامي"
POISON = 250


def entry(*topk, sure=True, **more):
    return {"label": topk[0][0], "topk": topk, "sure": sure, "answer": "", **more}


CAT = entry(("cat", 0.984), ("dog", 0.012), ("rabbit", 0.004), ("pig", 0.0001))
SIAMESE = {"breed": entry(("Siamese", 0.71), ("Sphynx", 0.29))}
GENDER = {"gender": entry(("female", 0.55), ("male", 0.45), sure=False)}
# What is answered to the photo of a kind: status, species, attributes.
ANSWERS = {
    "cat": ("ok", CAT, {**SIAMESE, **GENDER}),
    "doubtful": ("ok", entry(("cat", 0.5), ("dog", 0.5), sure=False), SIAMESE),
    "dog": ("no_specialist", entry(("dog", 1.0), sure=None), {}),
    "script": ("ok", CAT, {"breed": entry((SCRIPT, 0.6), (RTL, 0.4), may_be=[SCRIPT, RTL])}),
    "long": ("ok", CAT, {"breed": entry(("Donaudampfschifffahrtsgesellschaft" * 3, 0.9))}),
    "nan": ("non_finite", CAT, {}),
}


class Canned(FakeEngine):
    """Answers by the colour of a photo, which stands for its kind."""

    def _answer(self, photo, topk):  # noqa: ARG002
        number = int(photo.at(RULE)[0, 0, 0])
        if number == POISON:
            raise RuntimeError("poison")
        status, species, attributes = list(ANSWERS.values())[number]
        found = {"image": None, "status": status, "species": species, "attributes": attributes}
        return found | ({"message": "NaN in breed"} if status == "non_finite" else {})


@pytest.fixture
def server():
    with running(Limits(max_body_mb=1), Canned()) as started:
        yield started


@pytest.fixture
def visit(browser):
    """Open a page; in the end it has said nothing to the console and asked nobody else.

    `failures` are statuses that a test provokes: the browser itself reports each in the console.
    """
    visits = []

    def open_page(url, failures=(), **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.add_init_script(WATCH)
        page = context.new_page()
        page.set_default_timeout(20_000)
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: asked.append(request.url))
        visits.append((context, url, failures, said, asked))
        page.urls = asked
        page.goto(url)
        return page

    yield open_page
    for context, url, failures, said, asked in visits:
        assert context.cookies() == []
        context.close()
        expected = "|".join(map(str, failures)) or "none"
        pattern = rf"Failed to load resource: .*({expected})"
        assert [text for text in said if not re.match(pattern, text)] == []
        own = urlsplit(url).netloc
        assert {urlsplit(name).netloc for name in asked if name.startswith("http")} == {own}


def photo(name="cat.png", size=(60, 40)):
    """A small picture as a file that is chosen; its kind is how its name begins."""
    kinds = [number for number, kind in enumerate(ANSWERS) if name.startswith(kind)]
    content = io.BytesIO()
    Image.new("RGB", size, (kinds[0] if kinds else POISON, 120, 60)).save(content, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": content.getvalue()}


BROKEN = {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"}
TOO_LARGE = {**BROKEN, "name": "toolarge.jpg", "buffer": bytes(1_200_000)}


def num_requests(page, path):
    return sum(urlsplit(url).path == path for url in page.urls)


def choose(page, *files):
    page.get_by_label("Choose photos").set_input_files(list(files))


def card(page, name):
    return page.get_by_role("article", name=name, exact=True)


def one_animal(page):
    page.get_by_label("All photos show one animal").check()


def progress(page, words):
    expect(page.locator("#progress")).to_have_text(words)


def assert_fits(page):
    wide, shown = page.evaluate(
        "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= shown


# ---- Answers ----


def test_one_photo_gets_species_attributes_and_doubts(visit, server):
    page = visit(server.url)
    expect(page.locator("#trained")).to_contain_text("Trained on drawings of 720 animals")
    expect(page.get_by_label("Who is this?")).to_be_hidden()  # the server has no such network
    choose(page, photo())
    progress(page, "1 of 1 photo answered")
    found = card(page, "cat.png")
    expect(found.get_by_role("heading", name="Species")).to_be_visible()
    rows = found.get_by_role("list", name="Probabilities, Species").get_by_role("listitem")
    expect(rows).to_have_text(["cat98.4 %", "dog1.2 %", "rabbit0.4 %"])
    widths = [row.locator("i").bounding_box()["width"] for row in rows.all()]
    assert widths[0] > 50 * widths[1] > 0
    found.get_by_text("1 more").click()
    expect(found.get_by_text("< 0.1 %")).to_be_visible()
    breed, gender = found.locator(".attributes section").all()
    expect(breed.locator(".answer")).to_have_text("Siamese")
    expect(gender.locator(".answer")).to_have_text("female unsure")
    expect(page.get_by_role("log")).to_contain_text("Gender: female, unsure")
    assert [url for url in page.urls if "predict" in url] == [f"{server.url}predict?topk=5"]


def test_what_is_said_where_less_than_usual_is_known(visit, server):
    page = visit(server.url)
    choose(page, photo("doubtful.png"), photo("dog.png"), photo("nan.png"))
    doubtful, dog, nan = (card(page, f"{name}.png") for name in ("doubtful", "dog", "nan"))
    expect(nan).to_contain_text("output for this photo is not a number. NaN in breed")
    expect(nan.locator(".answer")).to_have_text("cat")
    expect(doubtful.locator(".answer").first).to_have_text("cat unsure")
    expect(doubtful).to_contain_text("Breed: valid only if the species is right (cat).")
    expect(dog).to_contain_text("There is no specialist for dog")
    expect(dog).to_contain_text("Not every network here was calibrated")
    expect(dog).to_contain_text("100.0 %")
    expect(dog.locator(".answer")).to_have_text("dog")


def test_several_photos_with_broken_ones_between(visit, server):
    page = visit(server.url, failures=[400, 413, 500])
    heic = {"name": "phone.heic", "mimeType": "image/heic", "buffer": HEIC}
    choose(page, photo("cat.png"), BROKEN, photo("dog.png"), TOO_LARGE, photo("fails"), heic)
    expect(card(page, "phone.heic")).to_contain_text("This is a HEIC photo")
    broken = card(page, "broken.jpg")
    for words in ("Not a photo that the server can read", "no preview",
                  "The server said: image of 10 bytes: not a PNG"):  # fmt: skip
        expect(broken).to_contain_text(words)
    expect(broken.get_by_role("button")).to_have_count(1)  # only: remove
    expect(card(page, "toolarge.jpg")).to_contain_text("larger than the server accepts")
    expect(card(page, "fails").get_by_role("button", name="Try again")).to_be_visible()
    expect(card(page, "dog.png").locator(".answer")).to_have_text("dog")
    progress(page, "2 of 6 photos answered")
    assert num_requests(page, "/predict") == 6


def test_several_photos_of_one_animal_are_fused(visit, server):
    page = visit(server.url, failures=[400])
    one_animal(page)
    choose(page, photo("cat.png"), photo("dog.png"), BROKEN)
    together = card(page, "All photos together")
    expect(together).to_contain_text("from 2 of 3 photos")
    expect(together).to_contain_text("Alone they would be: 1 × cat, 1 × dog.")
    expect(together.locator(".answer").first).to_have_text("cat")
    expect(card(page, "dog.png").locator(".answer")).to_have_text("dog")
    expect(card(page, "broken.jpg")).to_contain_text("Not a photo that the server can read")
    guess = card(page, "cat.png").get_by_text("unsure", exact=True)
    expect(guess).to_be_hidden()
    card(page, "cat.png").get_by_text("Breed, Gender").click()
    expect(guess).to_be_visible()
    assert (num_requests(page, "/predict_animal"), num_requests(page, "/predict")) == (1, 0)

    page.get_by_label("Each photo is its own animal").check()  # their answers are there already
    expect(together).to_be_hidden()
    expect(guess).to_be_visible()
    one_animal(page)
    choose(page, photo("cat2.png"))
    expect(together).to_contain_text("from 3 of 4 photos")
    page.get_by_role("button", name="Remove broken.jpg").click()
    expect(together).to_contain_text("from 3 photos")
    page.get_by_role("button", name="Clear all").click()
    choose(page, BROKEN, {**BROKEN, "name": "broken2.jpg"})
    for name in ("broken2.jpg", "All photos together"):
        expect(card(page, name)).to_contain_text("Not a photo that the server can read")
    progress(page, "0 of 2 photos answered")
    assert num_requests(page, "/predict") == 0


# ---- Requests ----


def test_a_busy_server_is_tried_again_and_not_for_ever(visit, server):
    page = visit(server.url, failures=[503])
    busy = [None] * 2  # so many requests are refused
    answer = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"status": "busy"}}
    page.route("**/predict?*", lambda route: route.fulfill(**answer) if busy else route.continue_())
    page.on("response", lambda reply: reply.status == 503 and busy.pop())
    choose(page, photo())
    expect(page.get_by_text("The server is busy: trying again in 1 s.")).to_be_visible()
    progress(page, "1 of 1 photo answered")
    busy += [None] * 5
    choose(page, photo("cat2.png"))
    expect(card(page, "cat2.png")).to_contain_text("Several attempts failed.")
    assert num_requests(page, "/predict") == 3 + 5
    card(page, "cat2.png").get_by_role("button", name="Try again").click()
    progress(page, "2 of 2 photos answered")


def test_a_few_at_once_and_cleared(visit, server):
    page = visit(server.url)
    server.engine.gate.clear()
    choose(page, *(photo(f"cat{number}.png") for number in range(8)))
    expect(page.get_by_text("Predicting")).to_have_count(3)
    expect(page.get_by_text("Waiting for its turn")).to_have_count(5)
    page.get_by_role("button", name="Clear all").click()
    server.engine.gate.set()
    expect(page.get_by_role("article")).to_have_count(0)
    expect(page.get_by_label("Choose photos")).to_be_focused()
    choose(page, photo("cat8.png"))
    progress(page, "1 of 1 photo answered")
    assert num_requests(page, "/predict") == 3 + 1
    page.get_by_role("button", name="Clear all").click()
    seen = page.evaluate("() => ({...window.seen, stored: localStorage.length})")
    assert (seen["made"], seen["stored"]) == (seen["revoked"], 0)


def test_networks_that_cannot_be_explained_and_a_server_that_is_gone(visit):
    engine = Canned()
    engine.can_explain = False
    with running(Limits(), engine) as server:
        page = visit(server.url, failures=["ERR_"])
        choose(page, photo("dog.png"))
        progress(page, "1 of 1 photo answered")
        expect(page.get_by_role("button", name="Why this answer?")).to_have_count(0)
    choose(page, photo())
    expect(card(page, "cat.png")).to_contain_text("The server does not answer")
    expect(card(page, "cat.png")).not_to_contain_text("The server said")


def test_why_this_answer(visit, server):
    page = visit(server.url)
    choose(page, photo(size=(40, 60)))
    found = card(page, "cat.png")
    button = found.get_by_role("button", name="Why this answer? Breed, Siamese")
    button.click()
    picture = found.get_by_alt_text("Places of the photo that raised Siamese")
    expect(picture).to_be_visible()
    box = picture.bounding_box()
    assert box["height"] / box["width"] == pytest.approx(60 / 40, rel=0.02)  # the photo's shape
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(found.get_by_alt_text("Photo cat.png")).to_be_hidden()
    assert page.urls[-2].endswith("/explain?species=cat&head=breed&label=Siamese")
    found.get_by_role("button", name="Why this answer? Species, cat").click()
    expect(found.get_by_alt_text("Places of the photo that raised cat")).to_be_visible()
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    button.click()
    expect(found.get_by_alt_text("Photo cat.png")).to_be_visible()
    assert num_requests(page, "/explain") == 2  # the third look was kept
    page.get_by_role("button", name="Remove cat.png").click()
    seen = page.evaluate("() => window.seen")
    assert (seen["made"], seen["revoked"]) == (3, 3)


# ---- Who is this? ----


@pytest.fixture
def knowing():
    with running(Limits(), Canned(), EMBEDDER) as started:
        yield started


def coloured(name, *colour):
    content = made_server.photo(colour)
    return {"name": name, "mimeType": "image/png", "buffer": content}


def answer(page, name, words):
    expect(card(page, name).locator(".answer")).to_have_text(words)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_query_is_ranked_against_the_gallery(visit, knowing, width):
    page = visit(knowing.url, viewport={"width": width, "height": 844}, failures=[400, 500])
    page.locator("#facts code").first.wait_for(state="attached")
    for key in ("Tab", "ArrowRight", "Tab"):
        page.keyboard.press(key)
    page.keyboard.type("Bella")
    choose(page, coloured("1.png", 250, 0, 0), coloured("2.png", 150, 200, 0))
    choose(page, coloured("query.png", 250, 50, 0), coloured("green.png", 0, 250, 0))
    page.get_by_label("Name").fill("Max")
    choose(page, coloured("3.png", 0, 0, 250), BROKEN)
    progress(page, "5 of 6 photos answered")
    # Bella is the mean of (1, 0, 0) and (0.6, 0.8, 0); the query is (0.981, 0.196, 0)
    rows = card(page, "query.png").get_by_role("list", name="Similarity").get_by_role("listitem")
    expect(rows).to_have_text(["Bella0.96", "Max0.00"])
    answer(page, "query.png", "Bella")
    answer(page, "green.png", "unknown")
    expect(card(page, "green.png")).to_contain_text("Unknown below 0.90: 1.0 % of pairs")
    expect(card(page, "Max").last).to_contain_text("Not a photo that the server can read")
    assert_fits(page)
    page.get_by_role("button", name="Remove Bella").last.click()
    expect(rows).to_have_text(["Bella0.98", "Max0.00"])
    page.get_by_label("What is this?").check()
    expect(card(page, "Max").first).to_be_hidden()
    assert (num_requests(page, "/embed"), num_requests(page, "/predict")) == (6, 2)
    page.get_by_label("Who is this?").check()
    page.get_by_role("button", name="Clear all").click()
    seen = page.evaluate("() => ({...window.seen, stored: localStorage.length})")
    assert (seen["made"], seen["revoked"], seen["stored"]) == (6, 6, 0)


@pytest.mark.parametrize("kind", ["choose", "drop"])
def test_a_folder_is_an_animal(visit, knowing, tmp_path, kind):
    page = visit(knowing.url)
    page.get_by_label("Who is this?").check()
    for name, colour in (("Bella", (250, 0, 0)), ("Max", (0, 0, 250))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(made_server.photo(colour))
        (tmp_path / name / ".hidden").touch()
    if kind == "choose":
        page.get_by_label("Choose a folder").set_input_files(tmp_path)
    else:
        dragged = {"items": [], "files": [str(tmp_path)], "dragOperationsMask": 1}
        devtools = page.context.new_cdp_session(page)
        for event in ("dragEnter", "dragOver", "drop"):
            given = {"type": event, "x": 200, "y": 300, "data": dragged}
            devtools.send("Input.dispatchDragEvent", given)
    progress(page, "2 of 2 photos answered")
    choose(page, coloured("query.png", 0, 0, 200))
    answer(page, "query.png", "Max")


# ---- Hands, eyes and machines ----


def test_the_keyboard_is_enough(visit, server):
    page = visit(server.url)
    page.on("filechooser", lambda _: None)  # choosers are caught from now on, not a little later
    keys = page.keyboard

    def focus_on(locator):
        for _ in range(40):
            keys.press("Tab")
            if locator.evaluate("(node) => node === document.activeElement"):
                return
        raise AssertionError("the keyboard does not get there")

    page.locator("#facts").wait_for(state="attached")
    keys.press("Tab")
    expect(page.get_by_label("Choose photos")).to_be_focused()
    outline = "(node) => getComputedStyle(node).outlineStyle"
    assert page.locator("label[for=choose]").evaluate(outline) == "solid"
    with page.expect_file_chooser() as chooser:
        keys.press("Enter")
    assert chooser.value.is_multiple()
    chooser.value.set_files([photo("cat.png"), photo("cat2.png")])
    progress(page, "2 of 2 photos answered")
    keys.press("Tab")
    keys.press("ArrowDown")
    expect(page.get_by_label("All photos show one animal")).to_be_checked()
    expect(card(page, "All photos together")).to_contain_text("from 2 photos")
    keys.press("ArrowUp")
    button = card(page, "cat2.png").get_by_role("button", name="Why this answer? Species")
    focus_on(button)
    assert button.evaluate(outline) == "solid"
    keys.press("Enter")
    expect(page.get_by_alt_text("Places of the photo that raised cat")).to_be_visible()
    focus_on(page.get_by_role("button", name="Remove cat2.png"))
    keys.press("Space")
    expect(card(page, "cat.png")).to_be_focused()
    focus_on(page.get_by_text("The networks behind the answers"))
    keys.press("Enter")
    expect(page.get_by_text("sha256 0123456789ab…").first).to_be_visible()
    assert page.evaluate("() => window.seen.pointer") == 0


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_photos_are_dropped_and_pasted(visit, server, kind):
    page = visit(server.url)
    page.evaluate(
        """([kind, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "cat.png", { type: "image/png" }));
          const event = kind === "drop"
            ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
          document.body.dispatchEvent(new DragEvent("dragover",
            { dataTransfer: data, bubbles: true, cancelable: true }));
          document.body.dispatchEvent(event);
        }""",
        [kind, list(photo()["buffer"])],
    )
    progress(page, "1 of 1 photo answered")
    expect(page.get_by_text("Drop the photos")).to_be_visible(visible=kind == "paste")


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_never_scrolls_sideways_and_labels_are_text(visit, server, width):
    page = visit(server.url, viewport={"width": width, "height": 844}, failures=[400])
    assert_fits(page)
    one_animal(page)
    odd = "script <b>bold</b> \u202egnp.png"
    choose(page, photo("cat.png"), photo(odd), photo("long" + "g" * 150 + ".png"))
    expect(card(page, "All photos together")).to_contain_text("from 3 photos")
    page.get_by_text("The networks behind the answers").click()
    assert_fits(page)
    page.get_by_label("Each photo is its own animal").check()
    choose(page, BROKEN)
    progress(page, "3 of 4 photos answered")
    page.get_by_role("button", name="Why this answer? Species").first.click()
    assert_fits(page)
    found = card(page, odd)
    expect(found.locator(".attributes .answer bdi")).to_have_text(SCRIPT)
    expect(found.locator(".may-be bdi").nth(1)).to_have_text(RTL)
    assert page.evaluate("() => window.wasRun") is None
    assert found.locator("script, b, img[src=x]").count() == 0


# ---- Networks ----


def test_the_page_with_networks(visit, stage1_run, stage2_run, tree, tmp_path):
    flags = "--stage1-checkpoint", stage1_run.folder / "best.pt"
    with served(tmp_path, *flags, "--stage2-folder", stage2_run.folder) as server:
        page = visit(server.url + "/", failures=[400])
        photos = sorted((tree.images / "cat/000000").iterdir())
        page.get_by_label("Choose photos").set_input_files([*photos, tree.images / EMPTY])
        progress(page, f"{len(photos)} of {len(photos) + 1} photos answered")
        expect(card(page, "00.png").first).to_contain_text("%")
        card(page, "01.png").get_by_role("button", name="Why this answer? Species").click()
        picture = card(page, "01.png").locator("img.why")
        expect(picture).to_be_visible()
        assert picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 32
        page.get_by_text("The networks behind the answers").click()
        expect(page.locator("#facts")).to_contain_text("cat, chimp, dog, yak")
        model_card = json.loads(server.get("/model_card"))
        digest = model_card["stage1"]["sha256"][:12]
        expect(page.locator("#facts code").first).to_contain_text(digest)
