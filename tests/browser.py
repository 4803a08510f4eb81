"""A browser, and what a person does with a widget in it."""

import os
import time
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

LIGHT, DARK = 'light', 'dark'


def chromium():
    "Chromium without a screen."
    options = webdriver.ChromeOptions()
    for o in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--window-size=1280,1000'):
        options.add_argument(o)
    driver = webdriver.Chrome(options, webdriver.ChromeService('/usr/bin/chromedriver'))
    driver.set_script_timeout(240)
    return driver


class Widget:
    "What a person can do with a widget on a page."

    def __init__(self, driver):
        self.driver = driver

    def wait(self, is_so, seconds=120):
        try:
            return WebDriverWait(self.driver, seconds, ignored_exceptions=[Exception]).until(lambda _: is_so())
        except TimeoutException:
            raise AssertionError(
                f'not seen within {seconds} s on a page that shows: '
                + self.driver.execute_script('return document.body.innerText')[-3000:]
            ) from None

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def click(self, css):
        self.wait(lambda: self.all(css)[0].click() or True)

    def press(self, key):
        self.driver.switch_to.active_element.send_keys(key)

    def text(self, pane):
        return self.driver.execute_script(
            'return document.querySelector(`[data-pane=${arguments[0]}]`)?.innerText ?? ""', pane
        )

    def shot(self, name):
        for width in (1280, 1920):
            self.driver.set_window_size(width, 1200)
            time.sleep(0.5)
            assert self.driver.execute_script(
                'const e = document.querySelector(".ipb"); return e.scrollWidth <= e.clientWidth + 1'
            )
            if d := os.environ.get('IPB_SHOTS'):
                self.driver.save_screenshot(str(Path(d) / f'{name}-{width}.png'))
        self.driver.set_window_size(1280, 1000)


def look(driver, width, height, theme=LIGHT, scale=1.0):
    "A window of this size, with this theme of the system."
    size = dict(width=width, height=height, deviceScaleFactor=scale, mobile=False)
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    features = [dict(name='prefers-color-scheme', value=theme)]
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=features))


def settled(w):
    "Wait until the page has as many thumbnails as it will have; their number."
    w.wait(lambda: w.all('[data-pane=main] figure'))
    script = (
        'const done = arguments[0]; let before = -1, same = 0; const look = () => { const e = '
        'document.querySelector(".ipb"), n = document.querySelectorAll("[data-pane=main] figure").length; '
        'same = n == before && e.ariaBusy != "true" ? same + 1 : 0; before = n; '
        'same > 8 ? done(n) : setTimeout(look, 60) }; look()'
    )
    return w.driver.execute_async_script(script)


BARRIERS = """
const lum = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                   return .2126 * r + .7152 * g + .0722 * b };
const rgba = s => { const x = document.createElement('canvas').getContext('2d'); x.fillStyle = s;
                    x.fillRect(0, 0, 1, 1); return [...x.getImageData(0, 0, 1, 1).data] };
const under = e => { let back = [255, 255, 255], chain = [];
    for (; e; e = e.parentElement) chain.unshift(rgba(getComputedStyle(e).backgroundColor));
    for (const [r, g, b, a] of chain) back = [r, g, b].map((v, k) => v * a / 255 + back[k] * (1 - a / 255));
    return back };
const out = [], name = e => e.outerHTML.slice(0, 90);
for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()) || !e.offsetParent) continue;
    if (e.closest('.bar, .larger')) continue;  // on the picture itself, with a shadow or a ground of their own
    const a = lum(rgba(getComputedStyle(e).color).slice(0, 3)), b = lum(under(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) out.push(`contrast ${ratio.toFixed(2)}: ${name(e)}`);
}
for (const e of document.querySelectorAll('button, input, select, textarea, a[href]'))
    if (!(e.innerText?.trim() || e.ariaLabel || e.labels?.[0]?.innerText || e.querySelector('img')?.alt || e.hidden))
        out.push(`without a name: ${name(e)}`);
for (const e of document.querySelectorAll('img'))
    if (!e.hasAttribute('alt')) out.push(`a picture without words: ${name(e)}`);
for (const e of document.body.querySelectorAll('*'))
    if (e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX) && e.offsetParent
        && e.tabIndex < 0 && !e.querySelector('a, button, input, select, [tabindex]'))
        out.push(`no key scrolls it: ${name(e)}`);
const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
for (const id of new Set(ids.filter((o, k) => ids.indexOf(o) != k))) out.push(`twice: id ${id}`);
for (const css of ['html[lang]', 'title', 'main', 'h1'])
    if (document.querySelectorAll(css).length != 1) out.push(`not one ${css}`);
let level = 0;
for (const e of document.querySelectorAll('h1, h2, h3, h4')) {
    if (e.tagName[1] > level + 1) out.push(`a level is skipped: ${name(e)}`);
    level = +e.tagName[1];
}
for (const e of document.querySelectorAll('th')) if (!e.innerText.trim()) out.push(`an empty head: ${name(e)}`);
return out"""


def barriers(driver) -> list:
    """What keeps people from using a page: text without contrast (WCAG 2.1 AA), controls and pictures without words,
    tables that no key scrolls, ids that come twice, no main part, no heading or one whose level is skipped, table heads
    without words, no language."""
    return driver.execute_script(BARRIERS)
