"""The page that asks for a key: it stands alone, since nothing else is given out without one."""

LOGIN_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>kvist: key</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { display: grid; place-items: center; min-height: 100vh; margin: 0; }
  form { display: grid; gap: .75rem; width: min(20rem, 90vw); }
  input, button { font: inherit; padding: .6rem .75rem; border-radius: .4rem; border: 1px solid GrayText; }
  p { margin: 0; min-height: 1.5em; }
</style>
<form method="post" action="/login">
  <h1>kvist</h1>
  <label for="key">API key</label>
  <input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
  <button>Open</button>
  <p role="alert"><!--message--></p>
</form>
</html>
"""
