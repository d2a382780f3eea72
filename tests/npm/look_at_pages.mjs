// Looks at pages in Chromium: what axe-core finds, what is said on the console, what is asked for, and whether all of it fits.
//
//   node look_at_pages.mjs CHROMIUM < [{"url": …, "width": 1280, "dark": true, "password": …, "picture": FILE, "keys": [KEY…]}, …]
//
// It prints one JSON array with what was found on each page. `keys` are pressed before it is looked at. A picture is of the whole
// page, or of so much as its `height` shows.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { chromium } from 'playwright-core'

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const args = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync']
const browser = await chromium.launch({ executablePath: process.argv[2], args })
const found = []
for (const { url, width, height, dark, password, picture, keys } of JSON.parse(readFileSync(0, 'utf8'))) {
  const context = await browser.newContext({
    viewport: { width, height: height ?? 900 },
    colorScheme: dark ? 'dark' : 'light',
    httpCredentials: password && { username: 'anybody', password },
  })
  const page = await context.newPage()
  const said = []
  const asked = []
  page.on('console', (message) => said.push(message.text()))
  page.on('pageerror', (error) => said.push(String(error)))
  page.on('dialog', (dialog) => said.push(`dialog: ${dialog.message()}`))
  page.on('request', (request) => asked.push(request.url()))
  const answer = await page.goto(url)
  for (const key of keys ?? []) {
    const shown = key === 'Enter' ? page.waitForEvent('load') : null
    await page.keyboard.press(key)
    await shown
  }
  if (picture) await page.screenshot({ path: picture, fullPage: height === undefined })
  const looks = await page.evaluate(() => ({
    // Whether some table is wider than what shows it, and so has to be scrolled.
    clipped: [...document.querySelectorAll('.wide')].some((each) => each.scrollWidth > each.clientWidth),
    back: getComputedStyle(document.body).backgroundColor,
    elements: [...new Set([...document.querySelectorAll('*')].map((each) => each.localName))],
    fits: document.documentElement.scrollWidth <= document.documentElement.clientWidth,
    focus: document.activeElement.textContent,
    text: document.body.innerText,
  }))
  const violations = await page.evaluate(`${axe}; axe.run({ preload: false })`).then((result) => result.violations)
  found.push({
    ...looks,
    address: page.url(),
    asked,
    picture,
    said,
    status: answer.status(),
    width,
    violations: violations.map(({ id, impact, nodes }) => ({ id, impact, at: nodes.map((node) => node.html.slice(0, 200)) })),
  })
  await context.close()
}
await browser.close()
console.log(JSON.stringify(found))
