// Light and dark follow the system until the button says otherwise.
const theme = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
let dark = system.matches;
const nameTheme = () => {
  theme.textContent = dark ? "Light" : "Dark";
  theme.setAttribute("aria-label", `Switch to the ${dark ? "light" : "dark"} page`);
};
const followSystem = () => { dark = system.matches; nameTheme(); };
system.addEventListener("change", followSystem);
theme.addEventListener("click", () => {
  system.removeEventListener("change", followSystem);
  dark = !dark;
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  nameTheme();
});
nameTheme();
theme.hidden = false;

// Every column whose heading has a name sorts: a column by its data-v where cells have one, else by its text.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    if (head.dataset.fixed !== undefined || rows.length < 2) return;
    const numeric = rows.some((row) => row.cells[column].dataset.v !== undefined);
    const value = (row) => {
      const cell = row.cells[column];
      return numeric ? parseFloat(cell.dataset.v) : cell.textContent;
    };
    const sort = () => {
      const down = head.ariaSort ? head.ariaSort === "ascending" : numeric;
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (numeric && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);
        return (numeric ? x - y : x.localeCompare(y, "en", { numeric: true })) * (down ? -1 : 1);
      };
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...rows.sort(order));
    };
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", sort);
    head.append(button);
  });
}
