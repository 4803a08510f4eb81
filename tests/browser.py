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
