// Light or dark, as chosen on an earlier visit, before anything is drawn. Without a choice the system's is taken.
(() => {
  const chosen = localStorage.getItem("kvist-scheme");
  if (chosen) document.documentElement.dataset.scheme = chosen;
})();
