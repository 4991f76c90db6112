// Pictures of a question, as data URLs. The server reads PNG, JPEG and WebP; what else the browser can
// show becomes PNG here.

const kAsTheyAre = new Set(["image/png", "image/jpeg", "image/webp"]);

// {name, url}. Throws an Error in words when this is no picture.
export async function read_picture(file) {
  const name = file.name || "picture";
  try {
    const url = kAsTheyAre.has(file.type) ? await data_url(file) : await as_png(file);
    await can_be_shown(url);
    return {name, url};
  } catch {
    throw new Error(`${name} is no picture that this browser can read.`);
  }
}

function data_url(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function as_png(file) {
  const picture = await createImageBitmap(file);
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").drawImage(picture, 0, 0);
  picture.close();
  return canvas.toDataURL("image/png");
}

async function can_be_shown(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
}
