"""The explorer's page in a real browser: it is used as a person would, and asks for nothing outside of this machine.

What the page does after an answer of the server is waited for (``expect``, ``wait_for_selector``), never read at once.
A wait for a function (``wait_for_function``) is `eval` in the page, which its Content-Security-Policy forbids.
"""

import json
from pathlib import Path
from urllib.parse import urlsplit

import graph_sets
import pytest
import synthetic
import synthetic_graph
import torch
from chromium import CHROMIUM
from conftest import REQUIRE
from explorer_server import running, write_dictionary
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect.explorer import workspace

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
PATIENCE = 60_000  # milliseconds: the machine may be busy
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
BAD = "<img src=x onerror=\"document.title='stolen'\"><script>document.title='stolen'</script>"
SIZES = [(700, 900), (1000, 700), (1600, 950)]
# What stands in a view once it can be used.
READY = {
    "model": "#logits .bars td",
    "dictionaries": ".features button",
    "dictionaries&feature=3": ".page h3",
    "graphs": "#counts:not(:empty)",
    "experiments": "[data-cell]",
    "experiments&cell=0": ".page .facts",
}
# What reaches beyond the window, and controls that have no name for a screen reader.
TOO_WIDE = """[...document.querySelectorAll("main *")]
  .filter(one => one.getClientRects().length && !one.closest(".scroll, svg, .hits"))
  .filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 90))"""
UNNAMED = """[...document.querySelectorAll("main button, main input, main select, main textarea")]
  .filter(one => one.getClientRects().length && !one.closest("label"))
  .filter(one => !(one.ariaLabel || one.textContent.trim() || one.labels?.length))
  .map(one => one.outerHTML.slice(0, 90))"""
# The graph is zoomed a little and dragged, a step a frame; milliseconds from frame to frame.
DRAGGED = """async () => {
  const canvas = document.querySelector("canvas.nodes"), found = [];
  const at = (x, y, buttons) => ({ clientX: x, clientY: y, buttons, pointerId: 1, bubbles: true });
  canvas.setPointerCapture = () => {};
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, clientX: 300, clientY: 300, cancelable: true }));
  canvas.dispatchEvent(new PointerEvent("pointerdown", at(300, 300, 1)));
  let last = await new Promise(requestAnimationFrame);
  for (let step = 0; step < 30; step++) {
    canvas.dispatchEvent(new PointerEvent("pointermove", at(300 + 6 * step, 300 + 3 * step, 1)));
    const now = await new Promise(requestAnimationFrame);
    found.push(now - last);
    last = now;
  }
  canvas.dispatchEvent(new PointerEvent("pointerup", at(480, 390, 0)));
  return found;
}"""


def missing(what):
    (pytest.fail if REQUIRE else pytest.skip)(what)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        missing("there is no Chromium: apt-get install chromium")
    expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    write_tiny_chat(folder / "model", n_layers=3)
    write_dictionary(folder / "sae")
    data = synthetic_graph.graph(n_features=80)
    features = [node for node in data["nodes"] if node["feature_type"] == "cross layer transcoder"]
    features[0]["clerp"] = BAD
    ids = [node["node_id"] for node in features]
    features[0]["qk_tracing_results"] = {"pair_wise_contributors": [[ids[1], ids[2], 0.5], [ids[2], BAD, -0.1]]}
    data["metadata"]["prompt"] = BAD
    data["metadata"]["prompt_tokens"][1] = BAD
    (folder / "graph.json").write_text(json.dumps(data))
    large = synthetic_graph.graph(n_features=10_000, n_tokens=16, n_layers=26, links_each=16)
    (folder / "large.json").write_text(json.dumps(large))
    write_circuit(folder)
    random_vectors()["cat"].export_gguf(folder / "cat.gguf")
    (folder / "run").mkdir()
    (folder / "run" / "with_info.json").write_text(json.dumps(synthetic.detection()))
    with running(workspace.find(str(folder))) as one:
        yield one


def write_circuit(folder):
    """A graph of the model, and the transcoders that it is of."""
    model = introspect.load_model(folder / "model")
    sets = {layer: one.to(torch.float32) for layer, one in graph_sets.per_layer(model).items()}
    for layer, one in sets.items():
        introspect.sae.files.save(one, folder / f"transcoder {layer}")
    graph = introspect.circuits.attribute(model, "a cat ate bread", sets, progress=False)
    graph.to_json(folder / "own.json")


@pytest.fixture
def page(browser, explorer):
    """A page in a profile of its own. What went wrong in it, and where it went, is looked at afterwards."""
    context = browser.new_context(viewport={"width": 1000, "height": 700}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    assert page.title() != "stolen"
    context.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("blob:", "data:"))}
    assert hosts == {f"127.0.0.1:{explorer.port}"}
    assert problems == []


def visit(page, explorer, view="model", more=""):
    """Open a view, and wait until it can be used."""
    page.goto("about:blank")
    page.goto(f"{explorer.url}#view={view}{more}")
    page.wait_for_selector(READY[view])


def test_a_prompt_is_typed_read_steered_and_restored(page, explorer):
    visit(page, explorer)
    assert "token" not in page.url  # it is out of the address bar
    page.fill("#prompt", "a cat ate bread")
    page.press("#prompt", "Control+Enter")
    tokens = page.locator(".prompt .tokens button")
    expect(tokens).to_have_text(["a", " cat", " ", "a", "t", "e", " bread"])
    expect(page.locator("table.map thead th").nth(1)).to_have_text("a")
    tokens.nth(3).click()
    page.locator("table.map tbody tr").nth(1).locator("td").nth(3).click()
    expect(tokens.nth(3)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#logits h2")).to_have_text("Next token after a")
    page.fill("#steer-word", " cat")
    page.fill("#steer-strength", "0.5")
    page.press("#steer-strength", "Enter")
    page.check("#steer-on")
    page.wait_for_selector("#logits .key.orange")
    page.fill("#new-tokens", "5")
    page.click("#write")
    expect(page.locator("#steer .texts pre")).to_have_count(2)
    expect(page.locator("#write")).to_be_enabled()
    page.click("#attention summary")
    page.locator("#attention .head").nth(2).click()
    page.wait_for_selector(".pattern canvas")
    page.click("#point summary")
    page.wait_for_selector("#point .histogram span")
    before = page.url
    page.reload()
    page.wait_for_selector("#logits .key.orange")
    expect(page).to_have_url(before)
    expect(page.locator("#prompt")).to_have_value("a cat ate bread")
    expect(page.locator("#steer-on")).to_be_checked()
    expect(page.locator("#steer-word")).to_have_value(" cat")
    expect(tokens.nth(3)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".pattern")).to_have_count(1)


def test_a_graph_is_pruned_pinned_grouped_changed_and_saved(page, explorer):
    visit(page, explorer, "graphs", "&graph=graph")
    many = page.inner_text("#counts")
    page.locator("#node-share").fill("0.4")
    expect(page.locator("#counts")).not_to_have_text(many, use_inner_text=True)
    page.locator("#node-share").fill("1")
    page.locator("#link-share").fill("1")
    page.fill("[type=search]", "onerror")
    page.locator(".hits button:not(:has-text('token '))").first.click()  # the feature whose name is markup
    blocks = page.locator(".sub .block")
    expect(page.locator("#node h2")).to_have_text(BAD)
    expect(page.locator("#qk .bars tr")).to_have_count(2)
    page.click("#pin")
    page.locator("#connections .pickable").first.click()
    expect(page.locator("#node h2")).not_to_have_text(BAD)
    page.click("#pin")
    expect(blocks).to_have_count(2)
    blocks.nth(0).click()
    blocks.nth(1).click(modifiers=["Shift"])
    page.fill(".sub input", "my group")
    page.click("text=Group")
    expect(page.locator(".sub .block.group")).to_have_count(1)
    page.keyboard.press("Escape")
    page.locator("canvas.nodes").focus()
    for key in ("ArrowUp", "ArrowLeft", "ArrowDown", "p"):
        page.keyboard.press(key)
    expect(blocks).to_have_count(2)
    page.fill("[type=search]", "feature")
    page.locator(".hits button").nth(1).click()
    page.click("text=Take out")
    page.click("#predict")
    page.wait_for_selector("#change h3")
    page.click("text=Paths from here")
    page.locator("#connections .pickable").last.click()
    with page.expect_download() as saved:
        page.click("#export")
    data = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    assert data["qParams"]["supernodes"][0][0] == "my group"
    assert len(data["qParams"]["supernodes"][0]) == 3
    assert len(data["qParams"]["pinnedIds"]) == 1
    page.reload()
    page.wait_for_selector(".sub .block.group")
    expect(blocks).to_have_count(2)
    expect(page.locator("#node-share")).to_have_value("1")
    expect(page.locator("#change .row.small")).to_have_count(1)


def test_heads_are_asked_why_and_changes_measured(page, explorer):
    visit(page, explorer, "graphs", "&graph=own&nodes=1&links=1")
    said = page.locator("#qk-live p")
    page.fill("#qk-live [aria-label=Layer]", "2")
    page.fill("#qk-live [aria-label=Head]", "1")
    page.select_option("#qk-live [aria-label='From the token']", "5")
    page.select_option("#qk-live [aria-label='To the token']", "3")
    page.click("#why")
    page.wait_for_selector("#qk-live .bars tr")
    first = said.inner_text()
    page.reload()
    expect(said).to_have_text(first, use_inner_text=True)
    page.fill("[type=search]", "feature")
    page.locator(".hits button").first.click()
    page.click("text=Paths from here")
    page.fill("[type=search]", "says")
    page.locator(".hits button").first.click()
    page.click("#carriers")
    page.wait_for_selector("text=Heads that carry it")
    page.locator("#qk-live [aria-label=Heads] .pickable").first.click()
    expect(said).not_to_have_text(first, use_inner_text=True)
    page.fill("[type=search]", "feature")
    page.locator(".hits button").first.click()
    page.click("text=Take out")
    page.click("#measure")
    page.wait_for_selector("text=measured in the model")


def test_ten_thousand_nodes_stay_responsive(page, explorer, capsys):
    """Every node and the strongest links are drawn again and again: while the graph is dragged, zoomed and pruned."""
    visit(page, explorer, "graphs", "&graph=large&nodes=1&links=1")
    expect(page.locator("#counts")).to_contain_text("10,4")
    page.evaluate("introspectFrames.length = 0")
    intervals = page.evaluate(DRAGGED)
    for share in ("0.9", "0.95", "1"):
        page.locator("#node-share").fill(share)
        page.wait_for_timeout(50)
    frames, intervals = sorted(page.evaluate("[...introspectFrames]")), sorted(intervals)
    median, between = frames[len(frames) // 2], intervals[len(intervals) // 2]
    with capsys.disabled():
        print(
            f"\n10,435 nodes, 117,000 links: {len(frames)} drawings, median {median:.1f}, slowest {frames[-1]:.1f} ms"
        )
        print(f"from frame to frame while dragged: median {between:.1f}, slowest {intervals[-1]:.1f} ms")
    assert len(frames) >= 20


def test_a_feature_is_found_tested_and_labelled(page, explorer):
    visit(page, explorer, "dictionaries")
    page.fill("#search", "a cat ate bread")
    page.press("#search", "Enter")
    page.wait_for_selector(".left .tokens button")
    page.locator(".features button").first.click()
    page.wait_for_selector(".page h3")
    page.fill("#test textarea", "no bread for a cat")
    page.wait_for_selector("#test .token")
    label = page.locator("[aria-label=Label]")
    label.fill(BAD)
    label.press("Enter")
    page.wait_for_selector("text=saved in labels.json")
    page.click("text=Read the texts")
    page.wait_for_selector(".contexts li")
    before = page.url
    page.reload()
    page.wait_for_selector(".contexts li")
    expect(page).to_have_url(before)
    expect(label).to_have_value(BAD)


def test_a_reading_is_drilled_into(page, explorer):
    visit(page, explorer, "experiments")
    page.locator("[data-cell]").first.click()
    page.wait_for_selector(".page .facts")
    shown = page.inner_text(".page h1")
    page.reload()
    expect(page.locator(".page h1")).to_have_text(shown, use_inner_text=True)


def test_keys_lead_through_the_views(page, explorer):
    visit(page, explorer)
    for number, name in enumerate(("Model", "Dictionaries", "Graphs", "Experiments"), start=1):
        page.keyboard.press("Escape")
        page.keyboard.press(str(number))
        page.wait_for_selector(f"nav button[aria-current]:text-is('{name}')")
    page.keyboard.press("?")
    expect(page.locator("dialog[open]")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.go_back()
    page.wait_for_selector("nav button[aria-current]:text-is('Graphs')")


def hold(page, address):
    """Requests to an address wait; the function that is given back lets them go."""
    held = []
    page.route(address, lambda route: held.append(route))

    def release():
        with page.expect_response(address):
            held[0].continue_()

    return release


def test_what_is_asked_while_a_view_opens_is_done_when_it_is_open(page, explorer):
    visit(page, explorer, "experiments")
    release = hold(page, "**/api/dictionary/sae")
    page.keyboard.press("2")
    page.fill("#search", "a cat ate bread")
    page.press("#search", "Enter")
    release()
    expect(page.locator(".left .tokens button")).to_have_count(7)
    release = hold(page, "**/api/graph/graph")
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    page.locator("#node-share").fill("0.4")
    release()
    few = page.locator("#counts")
    expect(few).not_to_be_empty()
    shown = few.inner_text()
    page.locator("#node-share").fill("1")
    expect(few).not_to_have_text(shown, use_inner_text=True)


def test_a_view_that_comes_late_takes_no_keys_from_the_one_that_is_shown(page, explorer):
    visit(page, explorer, "dictionaries")
    release = hold(page, "**/api/model/tokens")
    page.keyboard.press("1")
    page.wait_for_selector("#prompt")
    page.keyboard.press("4")
    page.wait_for_selector("[data-cell]")
    release()
    page.keyboard.press("ArrowDown")
    expect(page.locator("[data-cell][aria-current]")).to_have_count(1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("view", ["model", "dictionaries&feature=3", "graphs", "experiments&cell=0"])
def test_nothing_is_wider_than_the_window(page, explorer, size, view):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    visit(page, explorer, view)
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(UNNAMED) == []
