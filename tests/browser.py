"""Headless Chromium over the pipe of its DevTools protocol: pages at any width, in light and dark, and on paper.

No package is needed: messages are JSON ended by NULs, on the descriptors 3 and 4 of the browser's process.
"""

import base64
from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import pytest

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
_SECONDS = 60.0
# Puts the pipes where the browser looks for them, whichever descriptors they had.
_PUT_PIPES = '''import os, sys
ends = [os.dup(os.dup(os.dup(int(number)))) for number in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])'''


def find() -> str | None:
    """The path of a browser; None if there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def require() -> None:
    """Skips the test if there is no browser, which is an error in CI."""
    if find() is None:
        assert 'CI' not in os.environ, 'no Chromium is installed'
        pytest.skip('no Chromium is installed')


class Browser:
    """One page."""

    def __init__(self, process: subprocess.Popen, into: int, out: int):
        self._process, self._into, self._out = process, into, out
        self._buffer, self._number, self._session = b'', 0, None
        self.events = []  # of the page that was opened last
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in 'Page', 'Runtime', 'Log', 'Network':
            self.call(f'{domain}.enable')

    def open(self, path: pathlib.Path, *, width: int, dark: bool = False, media: str = '') -> None:
        """Shows a file in a window `width` CSS pixels wide."""
        self.events = []
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call('Emulation.setEmulatedMedia', media=media, features=[
            {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'},
            {'name': 'prefers-reduced-motion', 'value': 'reduce'}])
        self.call('Page.navigate', url=path.absolute().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def wait_for(self, script: str) -> Any:
        """The first value of a script that is true."""
        end = time.monotonic() + _SECONDS
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f'{script}: did not come; {self.complaints()}'
            time.sleep(0.02)
        return value

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions of the page's scripts, and what the browser logged of it."""
        return [event for event in self.events if event.get('method') in ('Runtime.exceptionThrown', 'Log.entryAdded')]

    def evaluate(self, script: str) -> Any:
        """What a script of the test says of the page."""
        answer = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def screenshot(self, *, whole: bool = True, height: int = 900) -> bytes:
        """The page as a PNG."""
        size = self.evaluate('[innerWidth, document.documentElement.scrollHeight]')
        clip = {'x': 0, 'y': 0, 'width': size[0], 'height': size[1] if whole else height, 'scale': 1}
        return base64.b64decode(self.call('Page.captureScreenshot', clip=clip, captureBeyondViewport=True)['data'])

    def pdf(self) -> bytes:
        """The page on paper."""
        return base64.b64decode(self.call('Page.printToPDF', printBackground=False)['data'])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; events that come meanwhile are kept."""
        self._number += 1
        session = {'sessionId': self._session} if self._session else {}
        os.write(self._into, json.dumps(
            {'id': self._number, 'method': method, 'params': parameters, **session}).encode() + b'\0')
        while True:
            message = self._next()
            if message.get('id') == self._number:
                assert 'error' not in message, message
                return message['result']
            self.events.append(message)

    def _next(self) -> dict[str, Any]:
        while b'\0' not in self._buffer:
            ready, _, _ = select.select([self._out], [], [], _SECONDS)
            data = os.read(self._out, 1 << 20) if ready else b''
            assert data, f'the browser is silent: {self._process.poll()}'
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """A browser, ended with the block."""
    (theirs_in, into), (out, theirs_out) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, '-S', '-c', _PUT_PIPES, str(theirs_in), str(theirs_out), find(), '--headless',
             '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars', '--no-first-run',
             '--disable-background-networking', f'--user-data-dir={folder}', '--remote-debugging-pipe'],
            pass_fds=[theirs_in, theirs_out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Browser(process, into, out)
        finally:
            process.kill()
            process.wait()
            os.close(into)
            os.close(out)
