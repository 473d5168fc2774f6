// Read an image file so that the page shows exactly the pixels that the service reads.

const TAKEN = ["image/jpeg", "image/png", "image/webp"];

/** Return {name, url, dataUrl, width, height, note} of an image file. Throws an Error that names the remedy. */
export const readPicture = async (name, file) => {
  let blob = file, note = "";
  if (file.type === "image/jpeg" && isTurned(new DataView(await file.arrayBuffer()))) {
    // The service ignores EXIF rotation, and captions of a photo that lies on its side are useless.
    blob = await redrawn(name, file, "image/jpeg");
    note = "The photo was rotated upright by its EXIF data; masks refer to the upright photo.";
  } else if (!TAKEN.includes(file.type)) {
    blob = await redrawn(name, file, "image/png");
    note = `${file.type || "The file"} was made a PNG, which the service takes.`;
  }
  const url = URL.createObjectURL(blob);
  const { naturalWidth: width, naturalHeight: height } = await loaded(name, url);
  return { name, url, dataUrl: await dataUrl(blob), width, height, note };
};

const unreadable = (name) => new Error(`${name}: this browser can't read it as an image. Give a JPEG, PNG or WebP.`);

const redrawn = async (name, file, type) => {
  const bitmap = await createImageBitmap(file).catch(() => { throw unreadable(name); });
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(unreadable(name))), type, 0.95));
};

const loaded = async (name, url) => {
  const image = Object.assign(new Image(), { src: url });
  await image.decode().catch(() => { throw unreadable(name); });
  return image;
};

const dataUrl = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(blob);
});

/** Return whether a JPEG's EXIF orientation (tag 0x0112) rotates or mirrors it. */
const isTurned = (view) => {
  let at = 2;
  while (at + 4 < view.byteLength && view.getUint8(at) === 0xff) {
    const marker = view.getUint8(at + 1), length = view.getUint16(at + 2);
    if (marker === 0xda) return false; // start of the pixel data
    if (marker === 0xe1 && length > 16 && at + length < view.byteLength && view.getUint32(at + 4) === 0x45786966) {
      return exifOrientation(new DataView(view.buffer, at + 10, length - 8)) > 1;
    }
    at += 2 + length;
  }
  return false;
};

const exifOrientation = (tiff) => {
  const little = tiff.getUint16(0) === 0x4949;
  const directory = tiff.getUint32(4, little);
  if (directory + 2 > tiff.byteLength) return 1;
  for (let index = 0; index < tiff.getUint16(directory, little); index++) {
    const entry = directory + 2 + 12 * index;
    if (entry + 12 > tiff.byteLength) return 1;
    if (tiff.getUint16(entry, little) === 0x0112) return tiff.getUint16(entry + 8, little);
  }
  return 1;
};
