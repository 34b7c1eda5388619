"use strict";
(() => {
  const all = (what, within = document) => [...within.querySelectorAll(what)];

  // Sorting: noise floors stay where they are, and what has no number stays last.
  for (const table of all("table.sortable")) {
    const body = table.tBodies[table.tBodies.length - 1];
    const first = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const start = head.dataset.better === "up" ? "descending" : "ascending";
      const other = start === "ascending" ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const next = now === null ? start : now === start ? other : null;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      if (next === null) {
        body.append(...first);
        return;
      }
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const words = head.classList.contains("words");
      const value = (row) => row.cells[column].dataset.sort;
      body.append(...[...first].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (words ? x.localeCompare(y, "en") : Number(x) - Number(y));
      }));
    }));
  }

  // Copying: files that are opened from disk may lack the clipboard's newer interface.
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  for (const button of all("[data-copy]")) {
    button.parentElement.hidden = false;
    button.addEventListener("click", async () => {
      const done = await copied(document.getElementById(button.dataset.copy).textContent);
      const status = button.parentElement.querySelector("[role=status]");
      status.textContent = done ? "Copied." : "The browser does not allow it: open the text below and select it.";
      setTimeout(() => { status.textContent = ""; }, 4000);
    });
  }

  // Provenance: a number's link leads to it without a script; with one it opens in front of the table.
  const dialog = document.getElementById("dialog");
  const inside = dialog.querySelector("div");
  for (const link of all("a.number")) {
    link.addEventListener("click", (event) => {
      const proof = document.getElementById(link.hash.slice(1));
      event.preventDefault();
      const title = document.createElement("h2");
      title.textContent = proof.querySelector("summary").textContent;
      const parts = [title];
      if (link.dataset.measure) parts.push(document.getElementById(link.dataset.measure).cloneNode(true));
      parts.push(...all(":scope > .record", proof).map((one) => one.cloneNode(true)));
      parts.forEach((part) => part.removeAttribute("id"));
      inside.replaceChildren(...parts);
      dialog.showModal();
      dialog.scrollTop = 0;
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  const opened = () => {
    const target = location.hash.startsWith("#proof-") && document.getElementById(location.hash.slice(1));
    if (target) target.open = true;
  };
  addEventListener("hashchange", opened);
  opened();

  // Clips: all in step, held or moving, at the size that is wanted.
  const button = document.getElementById("motion");
  if (button) {
    const root = document.documentElement;
    const films = all("video");
    const together = () => {
      for (const one of document.getAnimations()) {
        if (one.animationName === "film" && one.playState !== "paused") one.startTime = document.timeline.currentTime;
      }
    };
    const move = (moving) => {
      root.dataset.motion = moving ? "play" : "pause";
      button.textContent = moving ? "Pause" : "Play";
      for (const film of films) {
        film.currentTime = 0;
        if (moving) film.play().catch(() => { film.controls = true; });
        else film.pause();
      }
      if (moving) together();
    };
    button.hidden = false;
    button.addEventListener("click", () => move(root.dataset.motion !== "play"));
    films.forEach((film) => { film.controls = false; });
    move(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    addEventListener("load", together);
    all("#clips details").forEach((one) => one.addEventListener("toggle", together));
    const size = document.getElementById("size");
    document.getElementById("size-label").hidden = false;
    size.addEventListener("input", () => root.style.setProperty("--clip", `${size.value}px`));
  }
})();
